"""A Pyramid backend that enqueues in its own transaction, and without one."""

from __future__ import annotations

from typing import Any

from acme.jobs import WriteInvoice
from acme.shop import DATABASE_URL, SECRET, Invoice
from pydantic import ValidationError
from pyramid.config import Configurator
from pyramid.request import Request
from sqlalchemy import create_engine
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from penstock.producers.contrib.pyramid import events_path
from penstock.producers.outbox import Outbox

engine = create_engine(DATABASE_URL)
outbox = Outbox()


def create_app() -> Any:
    with Configurator(settings={"penstock.secret": SECRET}) as config:
        config.include("penstock.producers.contrib.pyramid", route_prefix="/penstock")
        for path, view in (("/invoices", create_invoice), ("/reprints", reprint)):
            config.add_route(path, path, request_method="POST")
            config.add_view(view, route_name=path, renderer="json")
        config.add_exception_view(refuse, context=ValidationError, renderer="json")
        return config.make_wsgi_app()


def create_invoice(request: Request) -> dict[str, str]:
    """The invoice and its job are committed together or not at all."""
    job = WriteInvoice.model_validate_json(request.body)
    with Session(engine) as session:
        session.add(Invoice(number=job.number, customer=job.customer))
        handle = outbox.enqueue(session, job)
        try:
            session.commit()
        except IntegrityError:
            request.response.status_code = 409
            return {"detail": f"there is an invoice {job.number} already"}
    request.response.status_code = 202
    return {"job": handle.id, "events": events_path(request, handle)}


def reprint(request: Request) -> dict[str, str]:
    """Nothing to commit: straight to the broker."""
    handle = request.penstock.enqueue(WriteInvoice.model_validate_json(request.body))
    request.response.status_code = 202
    return {"job": handle.id, "events": events_path(request, handle)}


def refuse(error: ValidationError, request: Request) -> dict[str, Any]:
    request.response.status_code = 422
    return {"detail": error.errors(include_url=False, include_context=False)}
