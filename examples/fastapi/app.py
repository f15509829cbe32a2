"""A FastAPI backend that enqueues in its own transaction, and without one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from acme.jobs import WriteInvoice
from acme.shop import DATABASE_URL, SECRET, Invoice
from fastapi import FastAPI, HTTPException, Request
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from penstock.producers.contrib.fastapi import Penstock, ProducerDep, State, Traces
from penstock.producers.outbox import Outbox

engine = create_async_engine(DATABASE_URL.replace("sqlite:", "sqlite+aiosqlite:"))
Session = async_sessionmaker(engine)
outbox = Outbox()
penstock = Penstock(secret=SECRET)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[State]:
    async with penstock.lifespan() as state:
        yield state
    await engine.dispose()


app = FastAPI(lifespan=lifespan)
app.add_middleware(Traces)
app.include_router(penstock.router, prefix="/penstock")


@app.post("/invoices", status_code=202)
async def create_invoice(job: WriteInvoice, request: Request) -> dict[str, str]:
    """The invoice and its job are committed together or not at all."""
    async with Session() as session:
        session.add(Invoice(number=job.number, customer=job.customer))
        handle = outbox.enqueue(session, job)
        try:
            await session.commit()
        except IntegrityError as error:
            raise HTTPException(409, f"there is an invoice {job.number} already") from error
    return {"job": handle.id, "events": penstock.events_path(request, handle)}


@app.post("/reprints", status_code=202)
async def reprint(job: WriteInvoice, request: Request, producer: ProducerDep) -> dict[str, str]:
    """Nothing to commit: straight to the broker."""
    handle = await producer.enqueue(job)
    return {"job": handle.id, "events": penstock.events_path(request, handle)}
