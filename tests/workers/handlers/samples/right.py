"""Right code of an application. Type checkers have nothing to say about it."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, Field
from sqlalchemy.orm import Session

from penstock.producers import AsyncProducer, JobHandle, Producer
from penstock.producers.outbox import Outbox
from penstock.schemas import Concurrency, Job, Rate, RetryPolicy, Sensitive
from penstock.workers import Context, Snooze, handles

T = TypeVar("T")


class Item(BaseModel):
    name: str


class SendInvoice(
    Job,
    kind="samples.invoice",
    queue="emails",
    version=2,
    retry=RetryPolicy(max_attempts=8),
    timeout=timedelta(seconds=30),
    delivery="once",
    unique_by=("number",),
    unique="reject",
    unique_for=3600,
    aliases=["samples.bill"],
    priority="high",
    expires_in=3600.0,
    max_crashes=5,
    limits=(Concurrency(5, by="tenant"), Rate(10, per=1)),
    title="An invoice",
):
    number: int
    to: Sensitive[str] = ""
    items: list[Item] = Field(default_factory=list)


class Base(Job):
    account: str


class Close(Base, kind="samples.close", track=False):
    at: datetime | None = None


class Audited:
    def audit(self) -> str:
        return repr(self)


class Open(Audited, Base, kind="samples.open"): ...


class Box(Job, Generic[T]):
    content: T


class IntBox(Box[int], kind="samples.box"): ...


@handles(SendInvoice)
async def send_invoice(job: SendInvoice, ctx: Context, *, more: str = "") -> int | Snooze:
    ctx.progress(1, len(job.items), "sent")
    return job.number


@handles(Close, isolate=True, memory_bytes=2**30)
def close(job: Close) -> str:
    return job.account


@handles(Open)
def any_account(job: Base) -> None: ...


@handles(IntBox)
def one_of_two(job: IntBox | Close) -> None: ...


def enqueue(producer: Producer, outbox: Outbox, session: Session, model: BaseModel) -> int:
    job = SendInvoice(number=1, items=[Item(name="pen")])
    handle: JobHandle = producer.enqueue(job, delay=5, key="invoice-7", tenant="acme", priority="low")
    outbox.enqueue(session, job, run_at=datetime.now().astimezone(), unique="existing")
    producer.enqueue_many([job, Close(account="7"), IntBox(content=3)])
    kinds: list[type[Job]] = [SendInvoice, Close]
    fields: dict[str, Any] = SendInvoice.model_validate({"number": 1}).redacted()
    models: list[BaseModel] = [job, model]
    return len(handle.id) + len(kinds) + len(fields) + len(models) + IntBox(content=3).content


async def enqueue_async(producer: AsyncProducer, ctx: Context) -> None:
    await producer.enqueue(Close(account="7"), expires_in=timedelta(hours=1), queue="emails")
    result: int | Snooze = await send_invoice(SendInvoice(number=1), ctx, more="x")
    closed: str = close(Close(account="7"))
    print(result, closed)
