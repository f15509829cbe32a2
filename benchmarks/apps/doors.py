"""Two ways to take a job over HTTP: Penstock's gateway, and a FastAPI route that validates it and does no more."""

from __future__ import annotations

from fastapi import FastAPI
from pydantic import BaseModel, EmailStr

from penstock.producers.gateway import create_app
from penstock.schemas import Job
from penstock.schemas.wire.ids import new_id


class Invoice(Job, kind="bench.invoice", queue="q"):
    invoice_id: int
    to: EmailStr


class Taken(BaseModel):
    id: str
    kind: str
    queue: str
    created: bool


def bare() -> FastAPI:
    app = FastAPI()

    @app.post("/v1/jobs/bench.invoice", status_code=202)
    async def take(job: Invoice) -> Taken:
        return Taken(id=new_id(), kind="bench.invoice", queue="q", created=True)

    return app


def gateway() -> FastAPI:
    return create_app()
