"""Handlers of a Django project that run apart, after a crash of their worker."""

from __future__ import annotations

from pathlib import Path

import pytest
from depot.jobs import InCoroutine, InPool, InThread
from support.polling import until
from workers.handlers.conftest import Depot, open_depot

from penstock.ledger.transitions.claim import ClaimRequest, claim
from penstock.producers import JobHandle
from penstock.schemas import Job
from penstock.schemas.wire.codec import decode
from penstock.workers.brokers import open_consumer
from penstock.workers.local.up.redis_server import RedisServer


def cut_off(depot: Depot, *jobs: Job) -> list[JobHandle]:
    """Jobs that a worker was running when it died."""
    handles = depot.producer.enqueue_many(jobs)
    settings = depot.settings
    consumer = open_consumer(settings.broker_url, ["depot"], name="dead", prefix=settings.prefix, lease_seconds=1)
    consumer.open()
    deliveries = until(lambda: consumer.fetch(len(jobs), 1))
    claim(depot.ledger, [ClaimRequest(decode(each.envelope), False, 3) for each in deliveries], worker="dead")
    assert len(deliveries) == len(jobs)
    consumer.close()
    return handles


@pytest.mark.parametrize("engine", ["celery", "dramatiq"])
def test_suspects_have_the_project_and_connections_of_their_own(
    engine: str, redis_server: RedisServer, postgres_url: str, tmp_path: Path
) -> None:
    with open_depot(redis_server, postgres_url, tmp_path, None) as depot:
        depot.environment["PENSTOCK_LEASE_SECONDS"] = "2"
        handles = cut_off(depot, *(kind(name=kind.__name__) for kind in (InThread, InCoroutine, InPool)))
        with depot.worker(engine):
            used = {depot.result(handle) for handle in handles}
            assert len(used) == len(handles)
            until(lambda: not used & depot.connections(), "the end of the connections with their processes")
        assert [handle.status().crashes for handle in handles] == [1] * len(handles)
        assert depot.log.read_text().count("runs in a process of its own") == len(handles)
