"""`/queues`: what waits, comes in and goes out, who consumes it, what is paused."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from penstock.ledger.queries import rates
from penstock.schemas.jobs.kind import DEAD_QUEUE, DISPATCHER_QUEUE
from penstock.workers.engines.celery.flower.page import Page
from penstock.workers.fleet.queues import Fleet, QueueView, as_values, queue_names, view_queues

OUT = timedelta(minutes=5)
"""Time that the rate of ended jobs is of."""
_KEPT_SECONDS = 4.0
NAMED = 20
"""Workers of a queue that are named."""


class Queues(Page):
    path, name, tab, title = r"/queues", "queues", "queues", "Queues"
    template = "fleet/queues.html"

    def read(self, query: Any, *path_arguments: str) -> dict[str, Any]:
        settings, scope = self.settings_of_penstock, self.person.scope
        fleet = Fleet.read(self.ledger, settings.lease)
        backlogs = self.services.backlogs(queue_names(settings, self.ledger, fleet))
        names = [name for name in sorted(backlogs) if scope.includes_queue(name) and name != DEAD_QUEUE]
        views = view_queues(settings, fleet, self.services.sender, names)
        ages = {name: backlog.oldest_seconds if backlog.jobs else None for name, backlog in backlogs.items()}
        arrivals, ended = self.services.arrivals, self._ended()
        return {
            "queues": [
                _row(view, ages[view.name])
                | {"in_per_minute": arrivals.per_minute(view.name)}
                | {"out_per_minute": None if ended is None else ended.get(view.name, 0.0)}
                for view in views
            ],
            "in_seconds": arrivals.seconds,
            "out_seconds": OUT.total_seconds(),
            "all_paused": _all(fleet),
        }

    def _ended(self) -> dict[str, float] | None:
        """Attempts with a result, per minute, by queue; None: the rates know no tenants, and the person has bounds."""
        scope = self.person.scope
        if scope.tenants is not None:
            return None

        def read_rates() -> dict[str, float]:
            queues = rates.report(self.ledger, OUT, scope=scope).queues
            return {queue: figures.per_second * 60 for queue, figures in queues.items()}

        return read_rates() if scope.is_bounded else self.services.kept("out", _KEPT_SECONDS, read_rates)


def _row(view: QueueView, oldest_seconds: float | None) -> dict[str, Any]:
    return {
        "name": view.name,
        "own": view.name != DISPATCHER_QUEUE,
        "waiting": view.waiting,
        "lanes": view.lanes,
        "oldest_seconds": oldest_seconds,
        "consumers": view.consumers,
        "workers": [worker.name for worker in view.workers[:NAMED]],
        "worker_count": len(view.workers),
        "left": [worker.name for worker in view.left[:NAMED]],
        "engines": view.engines,
        "declared_engine": view.declared,
        "pause": as_values(view.pause),
        "concurrency": view.concurrency,
        "weight": view.weight,
        "own_weight": view.own_weight,
        "max_length": view.max_length,
    }


def _all(fleet: Fleet) -> dict[str, Any] | None:
    return as_values(next((pause for pause in fleet.controls.pauses if pause.scope == "all"), None))


HANDLERS = (Queues,)
