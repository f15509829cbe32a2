"""Several workers of one queue over real brokers: a busy one keeps no job from an idle one."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from support.ledgers import upgraded
from support.polling import WAIT_SECONDS, until
from workers.executor.bench import Bench, Seen, seen

from penstock.config.settings import Settings
from penstock.ledger.sql.database import Database
from penstock.ledger.transitions.claim import ClaimRequest
from penstock.producers import Producer
from penstock.schemas import Job
from penstock.workers import Context, handles
from penstock.workers.engines.worker import Worker
from penstock.workers.executor import claiming as claiming_module


class Held(Job, kind="pace.held", queue="pace"):
    """Runs until the gate opens."""


class Short(Job, kind="pace.short", queue="pace"): ...


class ShortUntracked(Job, kind="pace.untracked", queue="pace", track=False): ...


gate, claiming = threading.Event(), threading.Event()
started: Counter[str] = Counter()


@handles(Held)
def held(job: Held, ctx: Context) -> None:
    started["held"] += 1
    gate.wait()


@handles(Short)
@handles(ShortUntracked)
async def short(job: Short | ShortUntracked) -> None:
    started["short"] += 1


class Blocking(Job, kind="pace.blocking", queue="ex"):
    """Blocks the event loop until the gate opens, as soon as another job is being claimed."""


@handles(Blocking)
async def blocking(job: Blocking) -> None:
    while not claiming.is_set():  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    gate.wait()


@pytest.fixture(params=["redis", "rabbitmq"])
def settings(request: pytest.FixtureRequest, tmp_path: Path, prefix: str) -> Iterator[Settings]:
    started.clear()
    gate.clear()
    yield Settings(
        broker_url=request.getfixturevalue({"redis": "redis_url", "rabbitmq": "amqp_url"}[request.param]),
        database_url=upgraded(f"sqlite:///{tmp_path}/ledger.db"),
        storage_url=f"file:{tmp_path}",
        prefix=prefix,
        stock_queues=(),
    )
    gate.set()


@pytest.mark.parametrize("engine", ["celery", "dramatiq"])
@pytest.mark.parametrize("kind", [Short, ShortUntracked])
def test_a_worker_with_full_slots_holds_nothing_that_an_idle_one_could_run(
    settings: Settings, engine: str, kind: type[Short] | type[ShortUntracked]
) -> None:
    producer = Producer.from_settings(settings)
    workers: list[Worker] = []

    def start(concurrency: int) -> None:
        worker = Worker(settings, engine=engine, queues=["pace"], concurrency=concurrency)
        workers.append(worker)
        worker.start()

    try:
        start(10)
        start(10)
        producer.enqueue_many([kind() for _ in range(2000)])
        until(lambda: started["short"] == 2000, "the short jobs, which make the workers fetch ahead")
        producer.enqueue_many([Held() for _ in range(40)])
        until(lambda: started["held"] == 20, "all 20 slots to be taken")
        start(20)
        until(lambda: started["held"] == 40, "the third worker to run what the others have no slots for")
        assert [len(worker.executor.running()) for worker in workers] == [10, 10, 20]
        gate.set()
        until(lambda: not any(worker.executor.in_flight for worker in workers), "the end of all")
        assert started["held"] == 40, "each ran once"
    finally:
        gate.set()
        for worker in workers:
            worker.stop()
        producer.close()


def test_a_job_that_is_claimed_while_the_loop_is_blocked_goes_to_another_worker(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate.clear()
    claiming.clear()
    claim = claiming_module.claim
    blocked = bench.worker(concurrency=2)

    def claim_when_blocked(database: Database, requests: Sequence[ClaimRequest], **options: Any) -> list[Any]:
        if requests[0].message.kind.name == "ex.seen" and not claiming.is_set():
            claiming.set()
            until(lambda: blocked.executor._watchdog.blocked)
        return claim(database, requests, **options)

    monkeypatch.setattr(claiming_module, "claim", claim_when_blocked)
    try:
        running = bench.producer.enqueue(Blocking())
        until(lambda: running.status().state == "running")
        handle = bench.producer.enqueue(Seen(name="late"))
        until(lambda: bench.broker.depths(["ex"]) == {"ex": 1}, "the job to be with the broker again")
        assert (handle.status().state, handle.status().attempt) == ("queued", 0)
        bench.worker(concurrency=1)
        assert handle.wait(WAIT_SECONDS).attempt == 1
        assert running.status().state == "running"
    finally:
        gate.set()
    assert running.wait(WAIT_SECONDS).state == "succeeded"
    assert seen == ["late"], "it ran once"
