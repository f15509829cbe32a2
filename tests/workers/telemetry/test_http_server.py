"""The port of a worker or dispatcher, which strangers may reach."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, suppress

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from support.polling import until
from support.servers.scrape import get, scrape

from penstock.config.errors import ConfigError
from penstock.config.process.metrics import add_process_metrics
from penstock.config.supervision import failures, faults
from penstock.workers.local.up.redis_server import free_port
from penstock.workers.telemetry.health.http_server import MOST_CONNECTIONS, HttpServer

Serve = Callable[..., HttpServer]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """`serve(**checks)`: a server, closed afterwards."""
    with ExitStack() as stack:

        def serve(registry: CollectorRegistry | None = None, **checks: Callable[[], str | None]) -> HttpServer:
            checks = {name: lambda: None for name in ("live", "ready", "started")} | checks
            server = HttpServer("127.0.0.1", 0, registry=registry or CollectorRegistry(), **checks)
            server.start()
            stack.callback(server.close)
            return server

        yield serve


def raw(port: int, request: bytes) -> bytes:
    """Everything that comes back, until the server closes."""
    with closing(socket.create_connection(("127.0.0.1", port), 30)) as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_each_path_says_yes_or_why_not(serve: Serve) -> None:
    server = serve(ready=lambda: "the broker does not answer")
    assert get(server.port, "/live") == (200, "ok\n")
    assert get(server.port, "/startup?x=1") == (200, "ok\n")
    assert get(server.port, "/ready") == (503, "the broker does not answer\n")
    assert get(server.port, "/live", "HEAD") == (200, "")
    assert get(server.port, "/")[0] == get(server.port, "/etc/passwd")[0] == 404
    assert get(server.port, "/live", "POST")[0] == 405


def test_an_answer_names_no_software(serve: Serve) -> None:
    head = raw(serve().port, b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n").lower()
    assert head.startswith(b"http/1.1 200 ok\r\n")
    assert b"server:" not in head
    assert b"python" not in head


@pytest.mark.parametrize(
    "request_bytes",
    [b"\r\n\r\n", b"GET\r\n\r\n", b"\xff /live HTTP/1.1\r\n\r\n", b"x" * 100_000, b"GET / SPDY\r\n\r\n"],
)
def test_what_is_not_http_gets_no_answer(serve: Serve, request_bytes: bytes) -> None:
    server = serve()
    with suppress(ConnectionError):
        assert raw(server.port, request_bytes) == b""
    assert get(server.port, "/live")[0] == 200


def test_slow_connections_keep_no_probe_out(serve: Serve) -> None:
    server = serve()
    with ExitStack() as stack:
        slow = [stack.enter_context(closing(socket.create_connection(("127.0.0.1", server.port)))) for _ in range(200)]
        for connection in slow[-MOST_CONNECTIONS:]:
            connection.sendall(b"GET /live HTTP/1.1\r\nX")
        assert get(server.port, "/live") == (200, "ok\n")
        threads = [thread for thread in threading.enumerate() if thread.name == "penstock http"]
        assert len(threads) == 1, "connections have no threads"


def test_a_check_that_fails_is_an_error_and_the_server_goes_on(serve: Serve) -> None:
    server = serve(ready=lambda: str(1 // 0))
    assert get(server.port, "/ready") == (500, "see the log of this process\n")
    assert get(server.port, "/live")[0] == 200


class Blocking(Collector):
    """Its scrape blocks until it is released."""

    def __init__(self) -> None:
        self.calls = 0
        self.release = threading.Event()

    def describe(self) -> Iterable[GaugeMetricFamily]:
        return ()

    def collect(self) -> Iterable[GaugeMetricFamily]:
        self.calls += 1
        assert self.release.wait(60)
        return (GaugeMetricFamily("slow", "Slow.", 7),)


def test_a_slow_scrape_blocks_no_health_and_is_shared(serve: Serve) -> None:
    registry, slow = CollectorRegistry(), Blocking()
    registry.register(slow)
    server = serve(registry)
    answers: list[tuple[int, str]] = []
    scrapes = [threading.Thread(target=lambda: answers.append(get(server.port, "/metrics"))) for _ in range(5)]
    for thread in scrapes:
        thread.start()
    until(lambda: slow.calls)
    assert get(server.port, "/live")[0] == 200
    slow.release.set()
    for thread in scrapes:
        thread.join()
    assert {status for status, _ in answers} == {200}
    assert all("slow 7.0" in text for _, text in answers)


def test_a_port_in_use_is_an_error_that_says_what_to_change() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        server = HttpServer(
            "127.0.0.1", port, registry=CollectorRegistry(), live=lambda: None, ready=lambda: None, started=lambda: None
        )
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port} .*Address already in use.*PENSTOCK_HTTP_PORT"):
            server.start()


def test_an_address_of_another_machine_is_an_error() -> None:
    server = HttpServer(
        "192.0.2.1", 1234, registry=CollectorRegistry(), live=lambda: None, ready=lambda: None, started=lambda: None
    )
    with pytest.raises(ConfigError, match=r"192\.0\.2\.1:1234"):
        server.start()


def test_a_patient_server_answers_once_the_port_is_free() -> None:
    port = free_port()
    checks = {name: lambda: None for name in ("live", "ready", "started")}
    first, second = (HttpServer("127.0.0.1", port, registry=CollectorRegistry(), **checks) for _ in range(2))
    second_registry = CollectorRegistry()
    add_process_metrics(second_registry, version="1", role="worker")
    second = HttpServer("127.0.0.1", port, registry=second_registry, **checks)
    first.start()
    second.start(patient=True)
    assert "penstock_info" not in scrape(port).names
    first.close()
    until(lambda: get(port, "/metrics")[0] == 200)
    assert "penstock_info" in scrape(port).names
    second.close()
    assert get(port, "/live")[0] == 0


def test_a_patient_server_that_never_got_the_port_can_be_closed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        checks = {name: lambda: None for name in ("live", "ready", "started")}
        server = HttpServer("127.0.0.1", other.getsockname()[1], registry=CollectorRegistry(), **checks)
        server.start(patient=True)
        server.close()
        assert not [thread for thread in threading.enumerate() if thread.name == "penstock http"]


def test_every_process_reports_what_it_is_and_what_it_outlived(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(failures, "outbox of postgresql://me@db/shop", 2)
    monkeypatch.setitem(failures, "outbox", 1)
    monkeypatch.setitem(faults, "ledger unavailable", 4)
    registry = CollectorRegistry()
    add_process_metrics(registry, version="9.9", role="worker", engine="celery")
    server = serve(registry)
    samples = scrape(server.port)
    assert samples.value("penstock_info", version="9.9", role="worker", engine="celery") == 1
    assert samples.value("penstock_loop_restarts_total", loop="outbox") == 3
    assert samples.value("penstock_faults_total", fault="ledger unavailable") == 4
    assert "postgresql" not in get(server.port, "/metrics")[1]
