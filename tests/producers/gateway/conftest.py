"""A gateway in a thread, spoken to over HTTP; its ledger is on SQLite and its broker the Redis of the tests."""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import pytest
import redis
from support.gateways import SECRET, Gateway, Open
from support.ledgers import empty, set_up
from support.polling import until

from penstock.config.sections.gateway import GatewaySettings
from penstock.config.settings import Settings
from penstock.ledger.sql.database import Database
from penstock.producers.gateway import create_app
from penstock.producers.gateway.server import Server
from penstock.workers.local.up.redis_server import RedisServer


@pytest.fixture(scope="module")
def settings(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("gateway")
    return Settings(
        broker_url=redis_server.url,
        database_url=set_up(f"sqlite:///{folder}/ledger.db"),
        storage_url=f"file:{folder}/storage",
        prefix=f"t{uuid.uuid4().hex[:10]}",
        token_secret=SECRET,
    )


@contextmanager
def opened(settings: Settings) -> Iterator[Gateway]:
    server = Server(create_app(settings), address="127.0.0.1", port=0)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started, "the gateway", unless=lambda: not thread.is_alive() and "its thread ended")
    port = server.servers[0].sockets[0].getsockname()[1]
    database = Database(settings.database_url)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        yield Gateway(client, port, database, settings, server.stop)
    server.stop()
    thread.join()
    server.stop()  # a second signal, when all has ended, harms nothing
    database.close()


@pytest.fixture(autouse=True)
def no_failures(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """A logged error of the server fails the test."""
    yield
    failures = {record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR}
    # uvicorn 0.54 says this of a WebSocket that was refused with a body, where the connection is not yet gone by then.
    assert failures <= {"ASGI callable returned without completing handshake."}


@pytest.fixture(scope="module")
def running(settings: Settings) -> Iterator[Gateway]:
    with opened(settings) as gateway:
        yield gateway


@pytest.fixture
def gateway(running: Gateway) -> Gateway:
    """With an empty ledger, and nothing on the broker."""
    empty(running.database)
    with redis.Redis.from_url(running.settings.broker_url) as client:
        for key in client.scan_iter(f"{running.settings.prefix}:*"):
            client.delete(key)
    return running


@pytest.fixture
def open_gateway(gateway: Gateway) -> Iterator[Open]:
    """Start another one, over the same ledger and broker, with other settings, or others of `[gateway]`."""
    with ExitStack() as stack:

        def start(other: Settings | None = None, **options: Any) -> Gateway:
            settings = other or gateway.settings
            return stack.enter_context(opened(settings.model_copy(update={"gateway": GatewaySettings(**options)})))

        yield start
