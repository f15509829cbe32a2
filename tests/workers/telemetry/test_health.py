"""Whether a worker and a dispatcher are live and ready, in each state that they can be in."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.ledgers import set_up
from support.polling import WAIT_SECONDS, until
from support.servers.proxy import Proxy
from workers.executor.bench import Add, Bench, DoInThread, gate

from penstock.config import supervision
from penstock.config.settings import Settings
from penstock.workers.brokers import Delivery
from penstock.workers.dispatcher.dispatcher import Dispatcher
from penstock.workers.engines.worker import Worker
from penstock.workers.executor import heartbeat, intake, watchdog
from penstock.workers.executor.heartbeat import Heartbeat
from penstock.workers.executor.intake import Intake
from penstock.workers.executor.runtime import io_threads
from penstock.workers.executor.watchdog import Watchdog
from penstock.workers.local.up.redis_server import RedisServer


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop counts as stopped after two seconds, not ten."""
    for module, name in (
        (heartbeat, "_LATE_SECONDS"),
        (intake, "_STALE_SECONDS"),
        (intake, "_LONGEST_STEP_SECONDS"),
        (io_threads, "_LONGEST_SETTLE_SECONDS"),
        (watchdog, "_STUCK_SECONDS"),
    ):
        monkeypatch.setattr(module, name, 2.0)
    monkeypatch.setattr(intake, "_LONGEST_PAUSE", 0.5)  # between two looks for a broker that is away; else 5 s


def test_no_zombie_is_live_after_fifteen_seconds() -> None:
    slowest_look = 3.0  # of the watchdog, before it counts a loop as blocked
    assert heartbeat._LATE_SECONDS < 15
    assert intake._STALE_SECONDS < 15
    assert intake._LONGEST_STEP_SECONDS <= 15
    assert io_threads._LONGEST_SETTLE_SECONDS <= 15
    assert watchdog._STUCK_SECONDS + slowest_look < 15


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize(
    ("owner", "body", "reason"),
    [
        (Heartbeat, "run", "the heartbeat stopped"),
        (Watchdog, "_run", "the watchdog stopped"),
        (Intake, "_consume", "the intake stopped"),
    ],
    ids=["heartbeat", "watchdog", "intake"],
)
def test_a_worker_with_a_loop_that_hangs_is_not_live(
    bench: Bench, owner: type[Any], body: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()

    def hang(self: Any) -> None:
        assert released.wait(300)

    async def hang_on_loop(self: Any) -> None:
        await asyncio.sleep(3600)

    monkeypatch.setattr(owner, body, hang_on_loop if owner is Heartbeat else hang)
    monkeypatch.setattr(intake, "_LONGEST_OPEN_SECONDS", 2.0)
    worker = bench.worker()
    assert worker.not_live() is None
    try:
        assert until(worker.not_live).startswith(reason)
    finally:
        released.set()


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("method", ["fetch", "ack"])
def test_a_worker_stuck_in_a_call_of_a_broker_that_answered_is_not_live(
    bench: Bench, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = bench.worker()
    until(lambda: worker.not_ready() is None)
    released = threading.Event()
    monkeypatch.setattr(worker.consumer, method, lambda *arguments: released.wait(300) and [])
    handle = bench.producer.enqueue(Add(a=1, b=2))
    try:
        reason = {"fetch": "the intake stopped", "ack": "one acknowledgement takes"}[method]
        assert until(worker.not_live).startswith(reason)
    finally:
        released.set()
    until(lambda: worker.not_live() is None)
    assert handle.wait(WAIT_SECONDS).state == "succeeded"


@pytest.mark.usefixtures("soon")
def test_a_fetch_of_many_slow_steps_is_live(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fetch that finds many queues without a leader, one after the other."""
    worker = bench.worker()
    until(lambda: worker.not_ready() is None)
    looks: list[str | None] = []
    done = threading.Event()

    def fetch(limit: int, timeout_seconds: float) -> list[Delivery]:
        while not done.wait(0.1):
            worker.consumer.step_at = time.monotonic()
        return []

    monkeypatch.setattr(worker.consumer, "fetch", fetch)
    try:
        until(lambda: looks.append(worker.not_live()) or len(looks) > 40, pause=0.1)  # type: ignore[func-returns-value]
    finally:
        done.set()
    assert set(looks) == {None}


@pytest.mark.usefixtures("soon")
def test_a_worker_whose_loop_has_ended_is_not_live(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The supervision of a loop cannot outlive every error."""
    worker = bench.worker()
    loops = worker.executor._loops
    worker.executor._runtime.loop.call_soon(loops["overdue attempts"].cancel)
    assert until(worker.not_live) == "a loop has ended: overdue attempts"


def test_a_heartbeat_that_fails_and_is_started_again_is_live(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    run, calls = Heartbeat.run, []

    async def fails_once(self: Heartbeat) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise ValueError("odd")
        await run(self)

    monkeypatch.setattr(Heartbeat, "run", fails_once)
    before = supervision.failures["heartbeat"]
    worker = bench.worker()
    until(lambda: len(calls) > 1)
    assert supervision.failures["heartbeat"] == before + 1
    assert worker.not_live() is None


@pytest.mark.usefixtures("soon")
def test_an_idle_worker_is_live_and_ready(bench: Bench) -> None:
    worker = bench.worker()
    until(lambda: worker.not_ready() is None)
    looks: list[str | None] = []
    until(lambda: looks.append(worker.not_live()) or len(looks) > 40, pause=0.1)  # type: ignore[func-returns-value]
    assert set(looks) == {None}


@pytest.fixture
def behind_a_proxy(redis_server: RedisServer, sqlite_url: str, prefix: str) -> Iterator[tuple[Settings, Proxy]]:
    """Settings with a ledger, and with a Redis that can be cut off."""
    proxy = Proxy(redis_server.port)
    url = redis_server.url.replace(f":{redis_server.port}", f":{proxy.port}")
    yield Settings(broker_url=url, database_url=set_up(sqlite_url), prefix=prefix), proxy
    proxy.close()


@pytest.fixture
def proxied(behind_a_proxy: tuple[Settings, Proxy]) -> Iterator[tuple[Worker, Proxy]]:
    """A worker whose Redis can be cut off."""
    settings, proxy = behind_a_proxy
    worker = Worker(settings, engine="test", queues=["ex"])
    worker.start()
    yield worker, proxy
    worker.stop(0)


@pytest.mark.usefixtures("soon")
def test_a_worker_without_its_broker_is_live_and_not_ready(proxied: tuple[Worker, Proxy]) -> None:
    worker, proxy = proxied
    until(lambda: worker.not_ready() is None)
    proxy.cut()
    assert until(worker.not_ready) == "the broker does not answer"
    looks: list[str | None] = []
    until(lambda: looks.append(worker.not_live()) or len(looks) > 40, pause=0.1)  # type: ignore[func-returns-value]
    assert set(looks) == {None}
    proxy.restore()
    until(lambda: worker.not_ready() is None)


@pytest.mark.usefixtures("soon")
def test_a_worker_without_its_ledger_is_live_and_not_ready(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another connection holds SQLite's only lock for longer than a worker waits."""
    worker = bench.worker()
    until(lambda: worker.not_ready() is None)
    holder = bench.database.engine.raw_connection()
    holder.driver_connection.isolation_level = None  # type: ignore[union-attr]
    holder.cursor().execute("BEGIN EXCLUSIVE")
    try:
        assert until(worker.not_ready) == "the ledger does not answer"
        looks: list[str | None] = []
        until(lambda: looks.append(worker.not_live()) or len(looks) > 40, pause=0.1)  # type: ignore[func-returns-value]
        assert set(looks) == {None}
    finally:
        holder.cursor().execute("ROLLBACK")
        holder.close()
    until(lambda: worker.not_ready() is None)


@pytest.mark.usefixtures("soon")
def test_a_worker_that_drains_is_live_and_not_ready(bench: Bench) -> None:
    worker = bench.worker()
    handle = bench.producer.enqueue(DoInThread(what="gate"))
    until(lambda: handle.status().state == "running")
    stopper = threading.Thread(target=worker.stop, args=(60,))
    stopper.start()
    bench.workers.clear()
    until(lambda: worker.not_ready() == "stopping")
    looks: list[str | None] = []
    until(lambda: looks.append(worker.not_live()) or len(looks) > 40, pause=0.1)  # type: ignore[func-returns-value]
    assert set(looks) == {None}
    gate.set()
    stopper.join()


@pytest.fixture
def dispatcher(behind_a_proxy: tuple[Settings, Proxy]) -> Iterator[tuple[Dispatcher, Proxy]]:
    settings, proxy = behind_a_proxy
    dispatcher = Dispatcher(settings)
    yield dispatcher, proxy
    dispatcher.stop()


def hang(dispatcher: Dispatcher, name: str) -> Callable[[], None]:
    """Let the rounds of a service hang. Returns what ends that."""
    released = threading.Event()
    [service] = [service for service in dispatcher.services if service.name == name]
    service.run_once = lambda: not released.wait(300)  # type: ignore[method-assign]
    service.longest_round_seconds = 0.5
    return released.set


def test_a_dispatcher_is_live_during_an_outage_and_ready_after_it(dispatcher: tuple[Dispatcher, Proxy]) -> None:
    runs, proxy = dispatcher
    proxy.cut()
    runs.start()
    assert until(runs.not_ready) == "the broker does not answer"
    assert runs.not_live() is None
    proxy.restore()
    until(lambda: runs.not_ready() is None)
    assert runs.not_live() is None


@pytest.mark.parametrize("name", ["due jobs", "inbox", "retention", "workflows"])
def test_a_dispatcher_with_a_service_that_hangs_is_not_live(dispatcher: tuple[Dispatcher, Proxy], name: str) -> None:
    runs, _ = dispatcher
    release = hang(runs, name)
    runs.start()
    assert until(runs.not_live).startswith(f"{name}: one round takes")
    release()
    until(lambda: runs.not_live() is None)


def test_a_dispatcher_whose_service_has_ended_is_not_live(dispatcher: tuple[Dispatcher, Proxy]) -> None:
    runs, _ = dispatcher
    runs.start()
    service = runs.services[0]
    service.stopping.set()
    assert service.join(60)
    service.stopping.clear()
    assert runs.not_live() == f"{service.name} has ended"
