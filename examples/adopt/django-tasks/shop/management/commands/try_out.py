"""`manage.py try_out`: an order, with all of its tasks; prints their results as JSON."""

import json
import time
from datetime import timedelta

from django.core.management.base import BaseCommand
from django.db import transaction
from django.utils import timezone
from django_tasks import default_task_backend

from shop.models import Order
from shop.tasks import charge, pack, refund, write_mail


class Command(BaseCommand):
    def handle(self, **options: object) -> None:
        with transaction.atomic():
            order = Order.objects.create(customer="Ada")
            results = {"pack": pack.enqueue(order.pk, fragile=True), "charge": charge.enqueue(order.pk)}
        later = timezone.now() + timedelta(seconds=1)
        results["refund"] = refund.enqueue(order.pk)
        results["later"] = write_mail.using(run_after=later).enqueue(order.pk, "Are you content?")
        try:
            with transaction.atomic():
                lost = pack.enqueue(Order.objects.create(customer="Grace").pk)
                raise InterruptedError
        except InterruptedError:
            pass
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not all(result.is_finished for result in results.values()):
            time.sleep(0.1)
            for result in results.values():
                result.refresh()
        mail = default_task_backend.get_result(results["pack"].return_value["mail"])
        while time.monotonic() < deadline and not mail.is_finished:
            time.sleep(0.1)
            mail.refresh()
        order.refresh_from_db()
        report = {name: self.show(result) for name, result in {**results, "mail": mail}.items()}
        report["later"]["in_time"] = results["later"].started_at is not None and results["later"].started_at >= later
        report["order"] = {"state": order.state, "mails": order.mails, "orders": Order.objects.count()}
        report["lost"] = lost.id
        self.stdout.write(json.dumps(report))

    def show(self, result) -> dict:
        return {
            "status": result.status,
            "value": result.return_value if result.status == "SUCCESSFUL" else None,
            "attempts": result.attempts,
            "errors": [error.exception_class.__name__ for error in result.errors],
            "queue": result.task.queue_name,
            "priority": result.task.priority,
            "workers": len(set(result.worker_ids)),
        }
