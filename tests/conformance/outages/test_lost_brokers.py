"""A broker that is emptied in the middle: jobs that the ledger had on record still end, and `once` happens once."""

from __future__ import annotations

import signal
import subprocess
import uuid
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import redis
from acme import Add
from outage_jobs import Effect
from support.polling import until
from support.servers.shared import AMQP_URL, need
from support.stack import stopped_at_the_end
from test_outages import Site

from penstock.ledger.transitions import due
from penstock.producers.senders.rabbitmq.names import lane_name
from penstock.producers.senders.rabbitmq.publisher import connect
from penstock.schemas.jobs.kind import PRIORITIES
from penstock.schemas.wire.codec import encode
from penstock.workers.local.up.redis_server import RedisServer

pytestmark = pytest.mark.slow
ONCE, OTHERS = 1000, 1000


@pytest.fixture(params=[("celery", "redis"), ("dramatiq", "rabbitmq")], ids="-".join)
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    engine, broker = request.param
    prefix = f"t{uuid.uuid4().hex[:10]}"
    server = RedisServer(tmp_path / "redis")
    if broker == "redis":
        server.start()
    else:
        need("RabbitMQ")
    site = Site(engine, server.url if broker == "redis" else AMQP_URL, prefix, tmp_path)
    with stopped_at_the_end(site, broker, request.session):
        yield site
    if broker == "redis":
        server.stop()


def wipe(site: Site) -> None:
    if site.broker_url != AMQP_URL:
        with redis.Redis.from_url(site.broker_url) as client:
            client.flushall()
        return
    connection = connect(AMQP_URL, timeout_seconds=30)
    try:
        channel = connection.channel()
        for priority in PRIORITIES:
            channel.queue_delete(lane_name(site.settings.prefix, "acme", priority))
    finally:
        connection.close()


def kill(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_recorded_jobs_outlive_their_broker(site: Site, tmp_path: Path) -> None:
    now = datetime.now(UTC)
    lines = str(tmp_path / "started")
    effects = [Effect(number=number, file=lines) for number in range(ONCE)]
    jobs = [*effects, *(Add(a=number, b=1) for number in range(OTHERS))]
    priorities = ("normal", "normal", "high", "low")
    envelopes = [
        encode(job, due_at=now + timedelta(seconds=number % 4), priority=priorities[number % 4])
        for number, job in enumerate(jobs)
    ]
    for _ in range(2):
        site.start_dispatcher()
    first, _ = site.start_worker(), site.start_worker()
    due.schedule(site.database, envelopes)

    until(lambda: site.states()["succeeded"] >= 200, "the first of them")
    wipe(site)
    until(lambda: site.states()["succeeded"] >= 800, "some after the first loss")
    wipe(site)
    kill(first)  # and only the ledger knows which job it ran

    site.all_succeed(len(jobs))
    assert site.effects() == Counter(range(ONCE))
    assert site.said("are sent again")
