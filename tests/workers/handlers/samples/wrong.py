"""Wrong code of an application: an editor has to flag each line that says so, and no other."""

from __future__ import annotations

from sqlalchemy.orm import Session

from penstock.producers import AsyncProducer, Producer
from penstock.producers.contrib.django.outbox import Outbox as DjangoOutbox
from penstock.producers.outbox import Outbox
from penstock.schemas import Job, RetryPolicy
from penstock.workers import Context, handles


class Right(Job, kind="samples.right"):
    number: int


class Base(Job):
    account: str


class Misspelt(Job, kind="samples.misspelt", quue="emails"): ...  # wrong


class MisspeltBelow(Base, kind="samples.misspelt.below", quue="emails"): ...  # wrong


class Retries(Job, kind="samples.retries", retry=3): ...  # wrong


class Urgent(Job, kind="samples.urgent", priority="urgent"): ...  # wrong


class Kindred(Job, kind=5): ...  # wrong


class Queued(Job, kind="samples.queued", queue=None): ...  # wrong


class Versioned(Job, kind="samples.versioned", version="2"): ...  # wrong


class Timed(Job, kind="samples.timed", timeout="30s"): ...  # wrong


class SoftlyTimed(Job, kind="samples.softly", soft_timeout="30s"): ...  # wrong


class Twice(Job, kind="samples.twice", delivery="twice"): ...  # wrong


class Tracked(Job, kind="samples.tracked", track="no"): ...  # wrong


class ByNumber(Job, kind="samples.by", unique_by=(3,)): ...  # wrong


class Unique(Job, kind="samples.unique", unique="rejct"): ...  # wrong


class Held(Job, kind="samples.held", unique="reject", unique_for="1h"): ...  # wrong


class States(Job, kind="samples.states", unique="reject", unique_states=3): ...  # wrong


class Quiet(Job, kind="samples.quiet", unique="debounce", debounce="30s"): ...  # wrong


class Aliased(Job, kind="samples.aliased", aliases=3): ...  # wrong


class Expiring(Job, kind="samples.expiring", expires_in="1h"): ...  # wrong


class Crashing(Job, kind="samples.crashing", max_crashes="3"): ...  # wrong


class Limited(Job, kind="samples.limited", limits=(5,)): ...  # wrong


class Searched(Job, kind="samples.searched", search=3): ...  # wrong


class Frozen(Job, kind="samples.frozen", frozn=True): ...  # wrong


RetryPolicy(max_attemps=3)  # wrong


@handles(Right)  # wrong
def of_another(job: Urgent) -> None: ...


@handles(Right)  # wrong
async def of_another_async(job: Urgent, ctx: Context) -> None: ...


@handles(Right, isolate=True)  # wrong
def of_another_isolated(job: Base) -> None: ...


@handles(Right, isolated=True)  # wrong
def misspelt(job: Right) -> None: ...


@handles(Context)  # wrong
def of_no_job(job: Context) -> None: ...


def enqueue(producer: Producer, outbox: Outbox, django: DjangoOutbox, session: Session, ctx: Context) -> None:
    job = Right(number=1)
    producer.enqueue(job, dely=5)  # wrong
    producer.enqueue(job, delay="5")  # wrong
    producer.enqueue(job, priority="urgent")  # wrong
    producer.enqueue(job, key=7)  # wrong
    producer.enqueue(job, run_at="2026-01-01")  # wrong
    producer.enqueue(job, tenant=7)  # wrong
    producer.enqueue(job, expires_in="1h")  # wrong
    producer.enqueue(job, queue=5)  # wrong
    producer.enqueue(job, id=5)  # wrong
    producer.enqueue(job, traceparent=5)  # wrong
    producer.enqueue(job, unique="rejct")  # wrong
    producer.enqueue(job, unique_for="1h")  # wrong
    producer.enqueue(job, unique_states=3)  # wrong
    producer.enqueue(job, debounce="5s")  # wrong
    producer.enqueue(job, tags=3)  # wrong
    producer.enqueue(Right)  # wrong
    producer.enqueue_many(job)  # wrong
    producer.enqueue_many([job, "x"])  # wrong
    outbox.enqueue(session, job, quue="x")  # wrong
    django.enqueue(job, quue="x")  # wrong
    ctx.enqueue(job, dely=5)  # wrong
    ctx.progress("half")  # wrong
    ctx.progress(1, 2, 3)  # wrong
    Right()  # wrong
    Right(number=1, nmber=2)  # wrong
    job.number = 2  # wrong


async def enqueue_async(producer: AsyncProducer) -> None:
    await producer.enqueue(Right(number=1), quue="x")  # wrong
