"""A Starlette backend that enqueues in its own transaction, and without one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from acme.jobs import WriteInvoice
from acme.shop import DATABASE_URL, SECRET, Invoice
from pydantic import ValidationError
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

from penstock.producers.contrib.starlette import Penstock, State, Traces, producer_of
from penstock.producers.outbox import Outbox

engine = create_async_engine(DATABASE_URL.replace("sqlite:", "sqlite+aiosqlite:"))
Session = async_sessionmaker(engine)
outbox = Outbox()
penstock = Penstock(secret=SECRET)


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[State]:
    async with penstock.lifespan() as state:
        yield state
    await engine.dispose()


async def create_invoice(request: Request) -> Response:
    """The invoice and its job are committed together or not at all."""
    job = WriteInvoice.model_validate_json(await request.body())
    async with Session() as session:
        session.add(Invoice(number=job.number, customer=job.customer))
        handle = outbox.enqueue(session, job)
        try:
            await session.commit()
        except IntegrityError:
            return JSONResponse({"detail": f"there is an invoice {job.number} already"}, 409)
    return JSONResponse({"job": handle.id, "events": penstock.events_path(request, handle)}, 202)


async def reprint(request: Request) -> Response:
    """Nothing to commit: straight to the broker."""
    handle = await producer_of(request).enqueue(WriteInvoice.model_validate_json(await request.body()))
    return JSONResponse({"job": handle.id, "events": penstock.events_path(request, handle)}, 202)


async def refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, ValidationError)
    return JSONResponse({"detail": error.errors(include_url=False, include_context=False)}, 422)


app = Starlette(
    routes=[
        Route("/invoices", create_invoice, methods=["POST"]),
        Route("/reprints", reprint, methods=["POST"]),
        Mount("/penstock", routes=penstock.routes),
    ],
    lifespan=lifespan,
    middleware=[Middleware(Traces)],
    exception_handlers={ValidationError: refuse},
)
