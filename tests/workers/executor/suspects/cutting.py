"""Jobs that a worker was running when it crashed."""

from __future__ import annotations

from workers.executor.bench import Bench

from penstock.ledger.transitions.claim import ClaimRequest, claim
from penstock.producers import JobHandle
from penstock.schemas import Job
from penstock.schemas.wire.codec import decode
from penstock.workers.brokers.memory import MemoryConsumer


def cut_off_all(bench: Bench, *all_jobs: Job) -> list[JobHandle]:
    """Jobs that a worker was running when it crashed."""
    handles = bench.producer.enqueue_many(all_jobs)
    consumer = MemoryConsumer(bench.broker, ["ex"])
    deliveries = consumer.fetch(len(handles), 1)
    assert len(deliveries) == len(handles)
    requests = [ClaimRequest(decode(delivery.envelope), False, 3) for delivery in deliveries]
    claim(bench.database, [request for request in requests if request.message.kind.track], worker="dead")
    consumer.die()
    return handles


def cut_off(bench: Bench, job: Job) -> JobHandle:
    [handle] = cut_off_all(bench, job)
    return handle
