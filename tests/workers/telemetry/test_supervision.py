"""Loops of workers, dispatchers and gateways: whatever one meets, it goes on, or its process ends with a reason."""

from __future__ import annotations

import ast
import asyncio
import importlib
import socket
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from kombu.clocks import LamportClock
from support.polling import until, until_async
from workers.telemetry.unsupervised import POOLS, TASKS, THREADS

from penstock.config import supervision
from penstock.config.process.readings import Readings
from penstock.config.settings import Settings
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.upgrade import upgrade
from penstock.producers.handles.redis_listener import RedisListener
from penstock.producers.handles.subscriptions import Subscriptions
from penstock.producers.senders.redis.connections import RedisConnections
from penstock.workers.brokers import open_consumer
from penstock.workers.brokers.rabbitmq.consumer import RabbitmqConsumer
from penstock.workers.brokers.redis.leases import Leases
from penstock.workers.dispatcher.dispatcher import Dispatcher
from penstock.workers.dispatcher.poller import Poller
from penstock.workers.engines.dramatiq.control import Control
from penstock.workers.engines.monitoring.events import Events
from penstock.workers.engines.renewal.link import ParentLink
from penstock.workers.executor.followups.change_publisher import ChangePublisher
from penstock.workers.executor.heartbeat import Heartbeat
from penstock.workers.executor.intake import Intake
from penstock.workers.executor.limit_gate import LimitGate
from penstock.workers.executor.runtime.loop_thread import LoopThread
from penstock.workers.executor.watchdog import Watchdog
from penstock.workers.telemetry.failures.hooks import FailureHooks
from penstock.workers.telemetry.failures.reports import FailureReports
from penstock.workers.telemetry.health.http_server import HttpServer
from penstock.workers.telemetry.health.probe_socket import ProbeSocket
from penstock.workers.telemetry.metrics.otlp_metrics import Push

ROOTS = {
    name: Path(importlib.import_module(f"penstock.{name}").__path__[0]) for name in ("config", "producers", "workers")
}

BODIES: dict[str, tuple[type[Any], str]] = {
    "config/process/readings.py": (Readings, "_run"),
    "producers/handles/redis_listener.py": (RedisListener, "_run"),
    "producers/handles/subscriptions.py": (Subscriptions, "_run_loop"),
    "workers/brokers/rabbitmq/consumer.py": (RabbitmqConsumer, "_beat"),
    "workers/brokers/redis/leases.py": (Leases, "_renew_regularly"),
    "workers/dispatcher/poller.py": (Poller, "_run"),
    "workers/engines/dramatiq/control.py": (Control, "_run"),
    "workers/engines/monitoring/events.py": (Events, "_run"),
    "workers/engines/renewal/link.py": (ParentLink, "_run"),
    "workers/executor/executor.py": (Heartbeat, "run"),
    "workers/executor/followups/change_publisher.py": (ChangePublisher, "_run"),
    "workers/executor/intake.py": (Intake, "_run"),
    "workers/executor/limit_gate.py": (LimitGate, "_renew"),
    "workers/executor/runtime/loop_thread.py": (LoopThread, "_run"),
    "workers/executor/watchdog.py": (Watchdog, "_run"),
    "workers/telemetry/metrics/otlp_metrics.py": (Push, "_run"),
    "workers/telemetry/health/http_server.py": (HttpServer, "_run"),
    "workers/telemetry/health/probe_socket.py": (ProbeSocket, "_run"),
    "workers/telemetry/failures/hooks.py": (FailureHooks, "_run"),
    "workers/telemetry/failures/reports.py": (FailureReports, "_run"),
}
"""File that starts a supervised loop → the body of the loop; of `executor.py` there is `Overdue.run`, too."""


def callers(*names: str) -> set[str]:
    """Files of config, producers and workers that call, or derive from, one of these."""
    files = set()
    for root_name, root in ROOTS.items():
        for path in root.rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                used = (
                    [node.func] if isinstance(node, ast.Call) else node.bases if isinstance(node, ast.ClassDef) else []
                )
                for item in used:
                    if (item.attr if isinstance(item, ast.Attribute) else getattr(item, "id", "")) in names:
                        files.add(f"{root_name}/{path.relative_to(root).as_posix()}")
    return files


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(supervision, "LONGEST_PAUSE", 0.01)
    monkeypatch.setattr(supervision, "FIRST_PAUSE", 0.001)
    yield
    supervision.on_give_up(None)


def failing(times: int, error: BaseException, stopping: threading.Event) -> tuple[Callable[[], None], list[int]]:
    """A body that raises so often, and then runs until it is stopped."""
    calls: list[int] = []

    def body() -> None:
        calls.append(len(calls))
        if len(calls) <= times:
            raise error
        stopping.wait()

    return body, calls


def test_each_thread_is_supervised_or_ends_by_itself() -> None:
    assert callers("Thread", "Timer", "start_new_thread") == set(THREADS)


def test_each_task_is_supervised_or_ends_by_itself() -> None:
    assert callers("create_task", "ensure_future", "spawn", "TaskGroup", "create_task_group") == set(TASKS)


def test_each_pool_of_threads_runs_single_calls() -> None:
    assert callers("ThreadPoolExecutor", "HandlerThreads", "ProcessPoolExecutor") == POOLS


def test_each_supervised_loop_is_in_the_table() -> None:
    assert callers("start_thread", "keep_running") == set(BODIES)


@pytest.mark.parametrize("error", [ValueError("odd"), SystemExit(3), KeyboardInterrupt(), MemoryError()], ids=repr)
def test_a_thread_goes_on_after_any_exception(error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    stopping = threading.Event()
    body, calls = failing(2, error, stopping)
    before = supervision.failures["a loop"]
    thread = supervision.start_thread("a loop", body, stopping)
    until(lambda: len(calls) == 3)
    assert supervision.failures["a loop"] == before + 2
    assert [record.exc_info is not None for record in caplog.records] == [True, True]
    assert f"a loop failed with {type(error).__name__}" in caplog.text
    stopping.set()
    thread.join(60)
    assert not thread.is_alive()


def test_an_outage_has_a_few_reasons_each_of_them_once() -> None:
    outage = supervision.Outage()
    assert [outage.is_new(ValueError(text)) for text in ("cut", "refused", "cut", "refused")] == [
        True,
        True,
        False,
        False,
    ]
    assert sum(outage.is_new(ValueError(str(number))) for number in range(100)) == supervision.MOST_REASONS - 2
    outage.end()
    assert outage.is_new(ValueError("cut"))


def test_a_thread_that_returns_unasked_is_started_again() -> None:
    stopping = threading.Event()
    calls: list[int] = []

    def body() -> None:
        calls.append(1)
        if len(calls) > 1:
            stopping.wait()

    thread = supervision.start_thread("a short loop", body, stopping)
    until(lambda: len(calls) == 2)
    stopping.set()
    thread.join(60)
    assert supervision.failures["a short loop"] == 1


def test_a_thread_that_is_stopped_after_a_failure_gets_to_end_in_order() -> None:
    stopping, ended = threading.Event(), threading.Event()

    def body() -> None:
        if not stopping.is_set():
            stopping.set()
            raise ValueError("odd")
        ended.set()

    supervision.start_thread("a loop that closes", body, stopping).join(60)
    assert ended.is_set()


def test_a_loop_that_fails_again_and_again_gives_up_with_a_reason() -> None:
    stopping = threading.Event()
    reasons: list[str] = []
    supervision.on_give_up(reasons.append)
    body, _ = failing(10**9, ValueError("always"), stopping)
    supervision.start_thread("a broken loop", body, stopping)
    assert until(lambda: reasons)[0].startswith("a broken loop has failed 12 times in a row")
    assert "ValueError('always')" in reasons[0]
    stopping.set()


def test_a_loop_that_is_not_vital_never_gives_up() -> None:
    stopping = threading.Event()
    reasons: list[str] = []
    supervision.on_give_up(reasons.append)
    body, calls = failing(10**9, ValueError("always"), stopping)
    supervision.start_thread("a broken side loop", body, stopping, vital=False)
    until(lambda: len(calls) > 2 * supervision.MOST_FAILURES)
    stopping.set()
    assert not reasons


def test_failures_before_a_healthy_stretch_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "HEALTHY_SECONDS", -1.0)
    stopping = threading.Event()
    reasons: list[str] = []
    supervision.on_give_up(reasons.append)
    body, calls = failing(10**9, ValueError("now and then"), stopping)
    supervision.start_thread("a loop that fails now and then", body, stopping)
    until(lambda: len(calls) > 2 * supervision.MOST_FAILURES)
    stopping.set()
    assert not reasons


@pytest.mark.parametrize(
    "error", [ValueError("odd"), SystemExit(3), asyncio.CancelledError(), RuntimeError("odd")], ids=repr
)
def test_a_task_goes_on_after_any_exception_and_ends_when_it_is_cancelled(error: BaseException) -> None:
    async def scenario() -> None:
        calls: list[int] = []

        async def body() -> None:
            calls.append(1)
            if len(calls) <= 2:
                raise error
            await asyncio.sleep(3600)

        task = asyncio.create_task(supervision.keep_running("a task", body))
        await until_async(lambda: len(calls) == 3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())


class Throwing:
    """Replaces the body of a loop by one that raises once, and counts its starts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: type[Any], name: str) -> None:
        self.starts = 0
        original = getattr(owner, name)

        def body(*arguments: Any) -> Any:
            self.starts += 1
            if self.starts == 1:
                raise SystemExit("thrown into the loop")
            return original(*arguments)

        monkeypatch.setattr(owner, name, body)


def start_leases(url: str) -> Callable[[], None]:
    leases = Leases(RedisConnections(url, timeout_seconds=5), "a worker", 1.0)
    leases.start()
    return leases.stop


def start_readings(_url: str) -> Callable[[], None]:
    readings = Readings("readings", {}, {"nothing": lambda: ()})
    readings.start()
    return readings.close


def start_changes(url: str) -> Callable[[], None]:
    changes = ChangePublisher(url, prefix="p", timeout_seconds=5)
    changes.start()
    return changes.close


def start_events(url: str) -> Callable[[], None]:
    events = Events(url, hostname="a worker", active=lambda: 0, clock=LamportClock())
    events.start()
    return events.stop


def start_control(url: str) -> Callable[[], None]:
    control = Control(url, "a worker", {}, LamportClock())
    control.start()
    return control.stop


@pytest.mark.parametrize(
    ("file", "start"),
    [
        ("config/process/readings.py", start_readings),
        ("workers/brokers/redis/leases.py", start_leases),
        ("workers/executor/followups/change_publisher.py", start_changes),
        ("workers/engines/monitoring/events.py", start_events),
        ("workers/engines/dramatiq/control.py", start_control),
    ],
)
def test_threads_on_redis_go_on_after_an_exception(
    file: str, start: Callable[[str], Callable[[], None]], redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    throwing = Throwing(monkeypatch, *BODIES[file])
    stop = start(redis_url)
    until(lambda: throwing.starts == 2)
    stop()


def test_a_worker_process_follows_its_parent_after_an_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    throwing = Throwing(monkeypatch, *BODIES["workers/engines/renewal/link.py"])
    ours, theirs = socket.socketpair()
    stopped = threading.Event()
    with theirs:
        ParentLink(theirs, 1).start(ready=lambda: True, orders={}, stop=stopped.set)
        assert ours.recv(100) == b"ready\n"
        ours.close()
        assert stopped.wait(60)
    assert throwing.starts == 2


@pytest.mark.rabbitmq
def test_the_heartbeat_of_a_rabbitmq_consumer_goes_on_after_an_exception(
    amqp_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    throwing = Throwing(monkeypatch, *BODIES["workers/brokers/rabbitmq/consumer.py"])
    consumer = open_consumer(amqp_url, ["supervised"], name="a worker", prefix=prefix, lease_seconds=30)
    consumer.open()
    until(lambda: throwing.starts == 2)
    consumer.close()


def test_each_service_of_a_dispatcher_goes_on_after_an_exception(redis_url: str, tmp_path: Path) -> None:
    settings = Settings(
        broker_url=redis_url, database_url=f"sqlite:///{tmp_path}/ledger.db", prefix=f"t{uuid.uuid4().hex[:8]}"
    )
    with closing(Database(settings.database_url)) as database:
        upgrade(database)
    dispatcher = Dispatcher(settings)
    rounds: Counter[str] = Counter()
    for service in dispatcher.services:
        throw_once(service, rounds)
    before = supervision.failures.copy()
    dispatcher.start()
    names = {service.name for service in dispatcher.services}
    until(lambda: all(rounds[name] > 1 for name in names))
    dispatcher.stop()
    assert supervision.failures - before == Counter(names)


def throw_once(service: Poller, rounds: Counter[str]) -> None:
    """Let the first round of a service raise."""
    run_once = service.run_once

    def throwing() -> bool:
        rounds[service.name] += 1
        if rounds[service.name] == 1:
            raise SystemExit("thrown into the service")
        return run_once()

    service.run_once = throwing  # type: ignore[method-assign]
    service.interval_seconds = 0.01
