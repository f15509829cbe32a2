"""The gateway attacked: by keys that are none, connections that say nothing, and pages of others."""

from __future__ import annotations

import logging
import math
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from support.gateways import INVOICE, SECRET, Gateway, Open, problem
from support.polling import WAIT_SECONDS, until
from support.servers.processes import resident
from support.stack import PENSTOCK
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from penstock.config.sections.gateway import GatewaySettings
from penstock.ledger.members import api_keys
from penstock.producers.gateway import connections
from penstock.producers.gateway.auth import callers
from penstock.producers.gateway.routes import streams
from penstock.producers.tokens import progress_token
from penstock.workers.local.up.redis_server import RedisServer

PATH = "/v1/jobs/gateway.invoice"
MEBIBYTE = 2**20


def send(port: int, data: bytes = b"") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), WAIT_SECONDS)
    connection.sendall(data)
    return connection


def answer(connection: socket.socket) -> bytes:
    """The whole answer on a connection, which must end; nothing if it is cut off."""
    parts = []
    try:
        while part := connection.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


# Keys.


@pytest.fixture
def own_process(gateway: Gateway, tmp_path: Path) -> Iterator[tuple[int, httpx.Client]]:
    """A gateway in a process of its own, whose memory can be looked at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "PENSTOCK_BROKER_URL": gateway.settings.broker_url,
        "PENSTOCK_DATABASE_URL": gateway.settings.database_url,
    }
    process = subprocess.Popen(
        [PENSTOCK, "gateway", "--port", str(port)], env=os.environ | settings, cwd=tmp_path, stderr=subprocess.DEVNULL
    )
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=WAIT_SECONDS) as client:

        def is_up() -> bool:
            try:
                return client.get("/live").status_code == 200
            except httpx.TransportError:
                return False

        until(is_up, "the gateway", unless=lambda: process.poll() is not None and "it ended")
        yield process.pid, client
    process.terminate()
    process.wait(WAIT_SECONDS)


def test_large_keys_that_are_none_do_not_fill_the_memory(own_process: tuple[int, httpx.Client]) -> None:
    pid, client = own_process
    client.get("/v1/kinds", headers={"Authorization": "Bearer psk_"})
    before = resident(pid)
    for number in range(300):
        head = b"GET /v1/kinds HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer psk_%d" % number
        with send(client.base_url.port or 0, head) as connection:
            try:
                connection.sendall(b"a" * MEBIBYTE + b"\r\n\r\n")
                assert answer(connection).startswith(b"HTTP/1.1 431 ")
            except (ConnectionResetError, BrokenPipeError):
                pass  # it was refused before all was sent
    assert resident(pid) - before < 20 * MEBIBYTE


def test_silent_connections_leave_the_gateway_answering(own_process: tuple[int, httpx.Client]) -> None:
    _pid, client = own_process
    with ExitStack() as opened:
        for _ in range(300):
            opened.enter_context(send(client.base_url.port or 0))
        assert httpx.get(f"{client.base_url}/live", timeout=WAIT_SECONDS).json() == {"status": "ok"}


@pytest.fixture
def lookups(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Keys that were looked for in the ledger."""
    looked_for: list[str] = []
    find = api_keys.find

    def find_noted(database: Any, text: str) -> Any:
        looked_for.append(text)
        return find(database, text)

    monkeypatch.setattr(api_keys, "find", find_noted)
    return looked_for


def test_a_text_without_the_form_of_a_key_is_never_looked_for(gateway: Gateway, lookups: list[str]) -> None:
    for text in ("psk_", "psk_0123456789ab", "psk_0123456789ab_" + "x" * 44, "psk_" + "é" * 40):
        headers = {"Authorization": f"Bearer {text}".encode("latin-1")}
        problem(gateway.client.get("/v1/kinds", headers=headers), 401, "unauthenticated")
    assert lookups == []


def test_unknown_keys_do_not_push_out_known_ones(
    open_gateway: Open, lookups: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callers, "_MOST_CACHED", 3)
    monkeypatch.setattr(callers, "CACHE_SECONDS", 3600.0)
    gateway = open_gateway()
    key = gateway.key()
    assert gateway.client.get("/v1/kinds", headers=key).status_code == 200
    for number in range(10):
        unknown = {"Authorization": f"Bearer psk_0123456789ab_{number:043d}"}
        for _ in range(2):
            problem(gateway.client.get("/v1/kinds", headers=unknown), 401, "unauthenticated")
    assert gateway.client.get("/v1/kinds", headers=key).status_code == 200
    assert len(lookups) == 11, "each was looked for once"


def test_a_key_without_kinds_is_for_none_of_the_built_in_ones(gateway: Gateway) -> None:
    mail = {"to": ["ada@example.com"], "subject": "Hello", "text": "Hello"}
    refused = gateway.client.post("/v1/jobs/email.send", json=mail, headers=gateway.key())
    problem(refused, 403, "kind-not-allowed")
    schedule = {"name": "mails", "kind": "email.send", "every": "6h", "payload": mail}
    problem(gateway.client.post("/v1/schedules", json=schedule, headers=gateway.key()), 403, "kind-not-allowed")
    problem(gateway.client.get("/v1/kinds/email.send", headers=gateway.key()), 403, "kind-not-allowed")
    kinds = gateway.client.get("/v1/kinds", headers=gateway.key()).json()["kinds"]
    assert {kind["kind"] for kind in kinds}.isdisjoint({"email.send", "report.build", "sync.run", "upload.process"})
    for pattern in ("*", "email.*"):
        sent = gateway.client.post("/v1/jobs/email.send", json=mail, headers=gateway.key(kinds=[pattern]))
        assert sent.status_code == 202


def test_a_caller_without_a_rate_of_its_own_has_one(open_gateway: Open) -> None:
    assert GatewaySettings().requests_per_second == 1000.0
    unlimited = open_gateway(requests_per_second=math.inf)
    assert unlimited.client.get("/v1/kinds", headers=unlimited.key()).status_code == 200


# Connections.


def test_a_head_that_takes_too_long_ends_its_connection(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.2)
    for begin in (b"", b"GET /live HTTP/1.1\r\nHost: x\r\n"):
        with send(gateway.port, begin) as connection:
            assert answer(connection).startswith(b"HTTP/1.1 408 ")


def test_a_second_head_on_a_connection_is_bounded_too(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.2)
    with send(gateway.port, b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n") as connection:
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        connection.sendall(b"\r\n")
        assert answer(connection).startswith(b"HTTP/1.1 408 ")
    job_id = gateway.client.post(PATH, json=INVOICE, headers=gateway.key()).json()["id"]
    token = progress_token(job_id, secret=SECRET)
    following = f"GET /v1/jobs/{job_id}/events?token={token} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    with send(gateway.port, following) as connection:
        assert b"200 OK" in connection.recv(65536)
        connection.sendall(b"GET /live HTTP/1.1\r\nX: ")  # while the first request is still answered
        assert b"HTTP/1.1" not in answer(connection), "it ends in the middle of the stream"


def test_a_large_head_is_refused_and_a_large_body_behind_a_small_one_is_not(gateway: Gateway) -> None:
    with send(gateway.port, b"GET /" + b"a" * 40_000) as connection:
        assert answer(connection).startswith(b"HTTP/1.1 431 ")
    body = b'{"data": "' + b"a" * 200_000 + b'"}'
    key = gateway.key()["Authorization"].encode()
    head = b"POST /v1/jobs/gateway.tree HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: " + key
    with send(gateway.port, head + b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body) as connection:
        assert answer(connection).startswith(b"HTTP/1.1 202 ")


def test_connections_that_are_idle_for_longest_make_room_for_new_ones(
    open_gateway: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 1.0)
    gateway = open_gateway(max_connections=3)
    silent = [send(gateway.port) for _ in range(6)]
    assert gateway.client.get("/live").status_code == 200
    answers = [answer(connection) for connection in silent]
    assert answers.count(b"") >= 4, "of six and one, three may stay, for the time of a head"
    for connection in silent:
        connection.close()


def test_a_connection_is_refused_where_all_others_are_at_work(open_gateway: Open) -> None:
    gateway = open_gateway(max_connections=1)
    key = gateway.key()
    job_id = gateway.client.post(PATH, json=INVOICE, headers=key).json()["id"]
    with gateway.client.stream("GET", f"/v1/jobs/{job_id}/events", headers=key) as response:
        lines = response.iter_lines()
        next(lines)
        with send(gateway.port, b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n") as connection:
            assert answer(connection).startswith(b"HTTP/1.1 503 ")


# Streams.


@contextmanager
def following(gateway: Gateway, job_id: str, **options: Any) -> Iterator[httpx.Response]:
    with gateway.client.stream("GET", f"/v1/jobs/{job_id}/events", **options) as response:
        yield response


def waiting_job(gateway: Gateway, key: dict[str, str]) -> str:
    return str(gateway.client.post(PATH, json=INVOICE, headers=key).json()["id"])


def test_a_caller_follows_only_so_many_jobs(open_gateway: Open) -> None:
    gateway = open_gateway(max_streams_per_caller=2)
    key = gateway.key()
    job_id = waiting_job(gateway, key)
    token = {"token": progress_token(job_id, secret=SECRET)}
    for options in ({"headers": key}, {"params": token}):
        with following(gateway, job_id, **options) as first, following(gateway, job_id, **options) as second:
            assert first.status_code == second.status_code == 200
            refused = gateway.client.get(f"/v1/jobs/{job_id}/events", **options)
            problem(refused, 429, "too-many-streams")
            other = gateway.key()
            with following(gateway, waiting_job(gateway, other), headers=other) as third:
                assert third.status_code == 200, "others have streams of their own"


def test_a_stream_ends_with_its_token(gateway: Gateway) -> None:
    job_id = waiting_job(gateway, gateway.key())
    token = progress_token(job_id, secret=SECRET, expires_in=timedelta(seconds=4))
    with following(gateway, job_id, params={"token": token}) as response:
        lines = list(response.iter_lines())  # it ends by itself
    assert not any(line == "event: end" for line in lines)
    problem(gateway.client.get(f"/v1/jobs/{job_id}/events", params={"token": token}), 401, "invalid-token")
    token = progress_token(job_id, secret=SECRET, expires_in=timedelta(seconds=4))
    with connect(f"ws://127.0.0.1:{gateway.port}/v1/jobs/{job_id}/ws?token={token}") as websocket:
        for _ in websocket:
            pass
        assert websocket.close_code == 1001


@pytest.mark.parametrize("how", ["expires", "is revoked"])
def test_a_stream_ends_with_its_key(gateway: Gateway, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    monkeypatch.setattr(callers, "CACHE_SECONDS", 0.0)
    monkeypatch.setattr(streams, "KEEP_ALIVE_SECONDS", 0.05)
    soon = datetime.now(UTC) + timedelta(seconds=4)
    key = gateway.key(expires_at=soon if how == "expires" else None)
    job_id = waiting_job(gateway, key)
    with following(gateway, job_id, headers=key) as response:
        lines = response.iter_lines()
        next(lines)
        if how == "is revoked":
            api_keys.revoke(gateway.database, key["Authorization"].split("_")[1])
        assert list(lines)
    problem(gateway.client.get(f"/v1/jobs/{job_id}/events", headers=key), 401, "unauthenticated")


def test_pages_of_other_origins_open_no_websocket(open_gateway: Open) -> None:
    gateway = open_gateway(cors_origins=["https://app.example.com"])
    job_id = waiting_job(gateway, gateway.key())
    url = f"ws://127.0.0.1:{gateway.port}/v1/jobs/{job_id}/ws?token={progress_token(job_id, secret=SECRET)}"
    for origin in ("https://evil.example.com", "null", "http://127.0.0.1:1"):
        with pytest.raises(InvalidStatus) as refused:
            connect(url, origin=origin)  # type: ignore[arg-type]
        assert refused.value.response.status_code == 403
        assert b"origin-not-allowed" in (refused.value.response.body or b"")
    for origin in ("https://app.example.com", f"http://127.0.0.1:{gateway.port}", None):
        with connect(url, origin=origin) as websocket:  # type: ignore[arg-type]
            assert websocket.recv(WAIT_SECONDS)


def test_a_large_message_ends_a_websocket(gateway: Gateway) -> None:
    job_id = waiting_job(gateway, gateway.key())
    url = f"ws://127.0.0.1:{gateway.port}/v1/jobs/{job_id}/ws?token={progress_token(job_id, secret=SECRET)}"
    with connect(url) as websocket:
        websocket.send("x" * 4000)
        assert websocket.recv(WAIT_SECONDS)
        websocket.send("x" * 5000)
        with pytest.raises(ConnectionClosed):
            while True:
                websocket.recv(WAIT_SECONDS)
        assert websocket.close_code == 1009


def test_the_token_of_a_websocket_is_in_no_log(gateway: Gateway, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    job_id = waiting_job(gateway, gateway.key())
    token = progress_token(job_id, secret=SECRET)
    with connect(f"ws://127.0.0.1:{gateway.port}/v1/jobs/{job_id}/ws?token={token}") as websocket:
        assert websocket.recv(WAIT_SECONDS)
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("uvicorn")]
    assert any(f"{job_id}/ws?…" in line for line in lines), lines
    assert not any(token in line for line in lines)


# Answers.


def test_an_answer_names_a_hundred_errors_at_most(gateway: Gateway) -> None:
    wrong = {**INVOICE, "lines": [0] * 60_000}
    errors = problem(gateway.client.post(PATH, json=wrong, headers=gateway.key()), 422, "invalid-fields")["errors"]
    assert len(errors) == 101
    assert errors[-1] == {"detail": "and 59900 more"}


def test_a_gateway_is_not_ready_while_its_broker_takes_no_writes(
    gateway: Gateway, open_gateway: Open, own_redis: RedisServer
) -> None:
    full = open_gateway(gateway.settings.model_copy(update={"broker_url": own_redis.url}))
    assert full.client.get("/ready").status_code == 200
    with redis.Redis.from_url(own_redis.url) as client:
        client.config_set("maxmemory", 1)
        problem(full.client.get("/ready"), 503, "broker-unavailable")
        assert full.client.get("/live").status_code == 200
        client.config_set("maxmemory", 0)
    assert full.client.get("/ready").status_code == 200
