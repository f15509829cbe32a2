"""An exception is thrown into each supervised loop, which goes on."""

from __future__ import annotations

import socket
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import httpx
import pytest
from kombu.clocks import LamportClock
from producers.traces.collector import collecting
from prometheus_client import CollectorRegistry, Gauge
from support.polling import WAIT_SECONDS, until
from workers.telemetry.loops import BODIES, Throwing

from penstock.config import supervision
from penstock.config.process import probe
from penstock.config.process.readings import Readings
from penstock.config.settings import Settings
from penstock.ledger.queries.deaths import Death
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.upgrade import upgrade
from penstock.producers.senders.redis.connections import RedisConnections
from penstock.workers.brokers import open_consumer
from penstock.workers.brokers.redis.leases import Leases
from penstock.workers.dispatcher.dispatcher import Dispatcher
from penstock.workers.dispatcher.poller import Poller
from penstock.workers.engines.dramatiq.control import Control
from penstock.workers.engines.monitoring.events import Events
from penstock.workers.engines.renewal.link import ParentLink
from penstock.workers.executor.followups.change_publisher import ChangePublisher
from penstock.workers.telemetry.failures import hooks
from penstock.workers.telemetry.failures.failure import Failure, failure_of_death
from penstock.workers.telemetry.failures.reports import FailureReports
from penstock.workers.telemetry.health.http_server import HttpServer
from penstock.workers.telemetry.health.probe_socket import ProbeSocket
from penstock.workers.telemetry.metrics import otlp_metrics

TESTS = Path(__file__).parents[2]
ELSEWHERE = {
    "producers/handles/redis_listener.py": "producers/test_supervision.py",
    "producers/handles/subscriptions.py": "producers/test_supervision.py",
    "workers/executor/executor.py": "workers/executor/misbehaving/test_loops.py",
    "workers/executor/intake.py": "workers/executor/misbehaving/test_loops.py",
    "workers/executor/limit_gate.py": "workers/limits/test_limits.py",
    "workers/executor/runtime/loop_thread.py": "workers/executor/misbehaving/test_loops.py",
    "workers/executor/watchdog.py": "workers/executor/misbehaving/test_loops.py",
}
"""File that starts a supervised loop → the tests that throw into it; into the others it is done here."""
SERVICES = "workers/dispatcher/poller.py"
"""File that starts the services of a dispatcher: into each of them it is thrown."""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(supervision, "FIRST_PAUSE", 0.001)
    yield
    supervision.on_give_up(None)


def test_each_supervised_loop_has_a_test_that_throws_into_it() -> None:
    here = Path(__file__).read_text()
    for file, (owner, name) in BODIES.items():
        if file in ELSEWHERE:
            text = (TESTS / ELSEWHERE[file]).read_text()
            assert f'{owner.__name__}, "{name}")' in text, file
        else:
            assert here.count(f'"{file}"') == 1, file


def start_leases(url: str) -> Callable[[], None]:
    leases = Leases(RedisConnections(url, timeout_seconds=5), "a worker", 1.0)
    leases.start()
    return leases.stop


def start_readings(_url: str) -> Callable[[], None]:
    readings = Readings("readings", {}, {"nothing": lambda: ()})
    readings.start()
    return readings.close


def start_changes(url: str) -> Callable[[], None]:
    changes = ChangePublisher(RedisConnections(url, timeout_seconds=5), prefix="p")
    changes.start()
    return changes.close


def start_control(url: str) -> Callable[[], None]:
    control = Control(url, {}, Events(hostname="a worker", active=lambda: 0, clock=LamportClock()))
    control.start()
    return control.stop


@pytest.mark.parametrize(
    ("file", "start"),
    [
        ("config/process/readings.py", start_readings),
        ("workers/brokers/redis/leases.py", start_leases),
        ("workers/executor/followups/change_publisher.py", start_changes),
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


def test_the_port_for_health_is_open_after_an_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    throwing = Throwing(monkeypatch, *BODIES["workers/telemetry/health/http_server.py"])
    checks: dict[str, Callable[[], None]] = dict.fromkeys(("live", "ready", "started"), lambda: None)
    server = HttpServer("127.0.0.1", 0, registry=CollectorRegistry(), **checks)
    server.start()

    def is_live() -> bool:
        with suppress(httpx.TransportError):
            return httpx.get(f"http://127.0.0.1:{server.port}/live").status_code == 200
        return False

    until(is_live)
    assert throwing.starts == 2
    server.close()


def test_a_process_answers_probes_after_an_exception(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    throwing = Throwing(monkeypatch, *BODIES["workers/telemetry/health/probe_socket.py"])
    monkeypatch.setattr(probe, "folders", lambda: [str(tmp_path / "penstock-1")])
    monkeypatch.setattr("penstock.workers.telemetry.health.probe_socket.folders", probe.folders)
    who = {"pid": 7, "name": "w1", "role": "worker", "prefix": "p", "live": None, "ready": None}
    endpoint = ProbeSocket(lambda: who)
    endpoint.start()
    until(lambda: probe.probe("live") == (True, ["worker w1 (pid 7): live"]))
    assert throwing.starts == 2
    endpoint.close()


def test_metrics_are_pushed_after_an_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    throwing = Throwing(monkeypatch, *BODIES["workers/telemetry/metrics/otlp_metrics.py"])
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "50")
    registry = CollectorRegistry()
    Gauge("shop_slots", "slots", registry=registry)
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", f"{collector.url}/v1/metrics")
        push = otlp_metrics.start(registry)
        until(lambda: collector.metrics)
        push.stop()
    assert throwing.starts == 2


def test_failures_are_reported_after_an_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    throwing = Throwing(monkeypatch, *BODIES["workers/telemetry/failures/reports.py"])
    reports = FailureReports(Settings())
    reported = threading.Event()
    reports._add(reported.set)
    assert reported.wait(WAIT_SECONDS)
    assert throwing.starts == 2
    reports.close()


def test_hooks_are_called_after_an_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    throwing = Throwing(monkeypatch, *BODIES["workers/telemetry/failures/hooks.py"])
    monkeypatch.setattr(hooks, "_hooks", [])
    called: list[Failure] = []
    hooks.on_failure(called.append)
    failure = failure_of_death(Death("1", "k", "q", None, 1, "failed", "odd", "f", None))
    running = hooks.FailureHooks()
    running.add(failure)
    until(lambda: called == [failure])
    assert throwing.starts == 2
    running.close(WAIT_SECONDS)
