"""A broker that goes down and comes back, under workers of both engines."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from engine_jobs import Add, Sleep
from kombu.clocks import LamportClock
from running import Running, running
from support.polling import until

from penstock.schemas.states import State
from penstock.workers.engines.monitoring.events import BUFFER, Events
from penstock.workers.local.up.redis_server import RedisServer

ENGINES = pytest.mark.parametrize("engine", ["celery", "dramatiq"])


@pytest.fixture
def worker(engine: str, own_redis: RedisServer, prefix: str, tmp_path: Path) -> Iterator[Running]:
    with running(engine, own_redis.url, prefix, tmp_path) as worker:
        yield worker


@ENGINES
def test_jobs_control_and_heartbeats_come_back_with_the_broker(worker: Running, own_redis: RedisServer) -> None:
    running_job = worker.producer.enqueue(Sleep(seconds=300))
    until(lambda: running_job.id in worker.active(), "the running job")
    own_redis.kill()
    own_redis.start()
    assert worker.producer.enqueue(Add(a=41)).result(timeout=60) == 42
    assert worker.active() == [running_job.id], "what ran went on"
    worker.ask("revoke", task_id=running_job.id, terminate=True)
    until(lambda: running_job.status().state is State.CANCELLED, "the cancellation")


@ENGINES
def test_a_worker_stops_while_the_broker_is_unavailable(worker: Running, own_redis: RedisServer) -> None:
    own_redis.kill()
    until(lambda: "Connection refused" in worker.log.read_text(), "the loss")
    worker.process.send_signal(signal.SIGTERM)
    assert worker.process.wait(60) == 0


def test_events_without_a_broker_are_kept_to_a_limit_the_oldest_dropped_first() -> None:
    events = Events(hostname="w", active=lambda: 0, clock=LamportClock())
    events.enable()
    ids = [str(number) for number in range(BUFFER + 2)]
    for id in ids:
        events.revoked(id)
    assert events.dropped == 2
    events.turn()
    events.stop()
    kept = [*(event["uuid"] for event in events._unsent), *(subject for _, subject, _ in events._buffer)]
    assert len(kept) == BUFFER
    assert kept[0] == ids[2]
