"""Jobs that a worker was running when it crashed."""

from __future__ import annotations

from workers.executor.bench import Bench

from penstock.ledger.transitions.claim import ClaimRequest, claim
from penstock.producers import JobHandle
from penstock.schemas import Job
from penstock.schemas.wire.codec import Envelope, decode
from penstock.workers.brokers.memory import MemoryConsumer


def cut_off_all(bench: Bench, *all_jobs: Job) -> list[JobHandle]:
    """Jobs that a worker was running when it crashed."""
    handles = bench.producer.enqueue_many(all_jobs)
    _crash(bench, len(handles))
    return handles


def cut_off_envelope(bench: Bench, envelope: Envelope) -> None:
    """The job of an envelope that a worker was running when it crashed."""
    bench.broker.send([envelope])
    _crash(bench, 1)


def _crash(bench: Bench, count: int) -> None:
    consumer = MemoryConsumer(bench.broker, ["ex"])
    deliveries = consumer.fetch(count, 1)
    assert len(deliveries) == count
    requests = [ClaimRequest(decode(delivery.envelope), False, 3) for delivery in deliveries]
    claim(bench.database, [request for request in requests if request.message.kind.track], worker="dead")
    consumer.die()


def cut_off(bench: Bench, job: Job) -> JobHandle:
    [handle] = cut_off_all(bench, job)
    return handle
