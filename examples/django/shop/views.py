"""Views of the shop."""

from __future__ import annotations

from acme.jobs import WriteInvoice
from django.db import IntegrityError, transaction
from django.http import HttpRequest, JsonResponse
from django.views.decorators.http import require_POST
from pydantic import ValidationError

from penstock.producers import JobHandle
from penstock.producers.contrib.django import Outbox, events_path, producer
from shop.models import Invoice

outbox = Outbox()


@require_POST
def create_invoice(request: HttpRequest) -> JsonResponse:
    """The invoice and its job are committed together or not at all."""
    try:
        job = WriteInvoice.model_validate_json(request.body)
        with transaction.atomic():
            handle = outbox.enqueue(job)
            Invoice.objects.create(number=job.number, customer=job.customer)
    except ValidationError as error:
        return refused(error)
    except IntegrityError:
        return JsonResponse({"detail": f"there is an invoice {job.number} already"}, status=409)
    return accepted(handle)


@require_POST
def reprint(request: HttpRequest) -> JsonResponse:
    """Nothing to commit: straight to the broker."""
    try:
        job = WriteInvoice.model_validate_json(request.body)
    except ValidationError as error:
        return refused(error)
    return accepted(producer().enqueue(job))


def accepted(handle: JobHandle) -> JsonResponse:
    return JsonResponse({"job": handle.id, "events": events_path(handle)}, status=202)


def refused(error: ValidationError) -> JsonResponse:
    return JsonResponse({"detail": error.errors(include_url=False, include_context=False)}, status=422)
