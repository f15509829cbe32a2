"""A Flask backend that enqueues in its own transaction, and without one."""

from __future__ import annotations

from acme.jobs import WriteInvoice
from acme.shop import DATABASE_URL, SECRET, Invoice
from flask import Flask, request
from flask.typing import ResponseReturnValue
from pydantic import ValidationError
from sqlalchemy import create_engine
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from penstock.producers.contrib.flask import Penstock
from penstock.producers.outbox import Outbox

engine = create_engine(DATABASE_URL)
outbox = Outbox()
penstock = Penstock()


def create_app() -> Flask:
    app = Flask(__name__)
    app.config["SECRET_KEY"] = SECRET
    penstock.init_app(app)
    app.add_url_rule("/invoices", view_func=create_invoice, methods=["POST"])
    app.add_url_rule("/reprints", view_func=reprint, methods=["POST"])
    app.register_error_handler(ValidationError, refuse)
    return app


def create_invoice() -> ResponseReturnValue:
    """The invoice and its job are committed together or not at all."""
    job = WriteInvoice.model_validate_json(request.data)
    with Session(engine) as session:
        session.add(Invoice(number=job.number, customer=job.customer))
        handle = outbox.enqueue(session, job)
        try:
            session.commit()
        except IntegrityError:
            return {"detail": f"there is an invoice {job.number} already"}, 409
    return {"job": handle.id, "events": penstock.events_path(handle)}, 202


def reprint() -> ResponseReturnValue:
    """Nothing to commit: straight to the broker."""
    handle = penstock.producer.enqueue(WriteInvoice.model_validate_json(request.data))
    return {"job": handle.id, "events": penstock.events_path(handle)}, 202


def refuse(error: ValidationError) -> ResponseReturnValue:
    return {"detail": error.errors(include_url=False, include_context=False)}, 422
