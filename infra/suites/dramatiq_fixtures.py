"""Fixtures of Dramatiq's own tests, with a broker that sends to Penstock's queues and a worker of Penstock's.

A plugin of pytest; see `dramatiq_suite.py`. Tests without a worker are left out: they test Dramatiq's client alone.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import dramatiq
import pytest
import sqlalchemy as sa
from dramatiq.message import set_encoder
from dramatiq.middleware import Middleware
from dramatiq.rate_limits.backends import RedisBackend as LimitsBackend
from dramatiq.results.backends import RedisBackend, StubBackend
from support.servers.shared import delete_rabbitmq

from penstock.config.errors import PenstockError
from penstock.config.settings import Settings
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import jobs
from penstock.ledger.sql.upgrade import upgrade
from penstock.producers import Producer
from penstock.producers.senders import scheme
from penstock.schemas.jobs.kind import registry
from penstock.schemas.states import FINAL
from penstock.workers.dispatcher.dispatcher import Dispatcher
from penstock.workers.engines.dramatiq.adopted.application import Application
from penstock.workers.engines.worker import Worker
from penstock.workers.handlers.registry import handlers
from penstock.workers.local.up.redis_server import RedisServer

QUEUES = ("default", "some-queue", "foo", "tasks")
_WAIT_SECONDS = 20.0

skip_in_ci = skip_on_pypy = skip_on_windows = pytest.mark.skipif(False, reason="")


def pytest_collection_modifyitems(config: pytest.Config, items: list[Any]) -> None:
    without = [item for item in items if "stub_worker" not in item.fixturenames]
    config.hook.pytest_deselected(items=without)
    items[:] = [item for item in items if "stub_worker" in item.fixturenames]


class SuiteBroker(dramatiq.Broker):
    """The application's broker of one test. It adopts each actor when that is declared."""

    def __init__(self, settings: Settings, database: Database) -> None:
        super().__init__()
        self._database = database
        self._ends = Ends()
        self.add_middleware(self._ends)
        self._application = Application(self, ())
        self._application.add_handlers(settings)
        self._last = self.middleware[-1]

    def boot(self) -> None:
        self._application.boot_without_worker()

    def declare_actor(self, actor: Any) -> None:
        super().declare_actor(actor)
        self._application.add_handler(actor)

    def declare_queue(self, queue_name: str) -> None:
        if queue_name not in self.queues:
            self.emit_before("declare_queue", queue_name)
            self.queues[queue_name] = None
            self.emit_after("declare_queue", queue_name)

    def add_middleware(self, middleware: Middleware, **options: Any) -> None:
        super().add_middleware(middleware, **options)
        if (last := getattr(self, "_last", None)) is not None:  # as if it had been added before the adoption
            self.middleware.remove(last)
            self.middleware.append(last)

    def join(self, queue_name: str, *, timeout: int | None = None, fail_fast: bool = True) -> None:
        """Wait until all messages of this test have ended."""
        deadline = time.monotonic() + (_WAIT_SECONDS if timeout is None else timeout / 1000)
        while self._unended():
            if time.monotonic() > deadline:
                raise dramatiq.errors.QueueJoinTimeout(queue_name)
            if fail_fast and self._ends.errors:
                break
            time.sleep(0.01)
        if fail_fast and self._ends.errors:
            raise next(iter(self._ends.errors.values()))

    @property
    def dead_letters(self) -> list[Any]:
        return self._ends.dead

    def _unended(self) -> set[str]:
        sent = set(self._ends.sent)
        where = sa.select(jobs.c.id).where(jobs.c.id.in_(sent), jobs.c.state.in_(FINAL))
        ended = self._database.read(lambda connection: set(connection.scalars(where)))
        return sent - ended

    def end(self, producer: Producer) -> None:
        """Cancel what this test has left, so that no later actor of the same name gets it, and forget the actors."""
        deadline = time.monotonic() + _WAIT_SECONDS
        while (unended := self._unended()) and time.monotonic() < deadline:
            for message_id in unended:
                with suppress(PenstockError):  # no worker has seen it yet, or it has just ended
                    producer.handle(message_id).cancel()
            time.sleep(0.1)
        for name in self.actors:
            if (kind := registry.find(name)) is not None:
                handlers.discard(kind)
                registry.discard(kind)


class Ends(Middleware):
    """The messages of a test: those that were sent, and those that were failed, with their errors."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.dead: list[Any] = []
        self.errors: dict[str, BaseException] = {}

    def after_enqueue(self, broker: Any, message: Any, delay: Any) -> None:
        self.sent.append(message.message_id)

    def after_nack(self, broker: Any, message: Any) -> None:
        self.dead.append(message)
        if message._exception is not None:
            self.errors[message.message_id] = message._exception


class SuiteWorker:
    """The worker of a test, as far as Dramatiq's tests use it."""

    def __init__(self, broker: SuiteBroker) -> None:
        self._broker = broker

    def join(self) -> None:
        self._broker.join("", fail_fast=False)

    def pause(self) -> None:
        pytest.skip("a worker of ours is not paused by an object")


@contextmanager
def worker(broker: SuiteBroker, **options: Any) -> Iterator[SuiteWorker]:
    yield SuiteWorker(broker)


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> Settings:
    folder: Path = tmp_path_factory.mktemp("penstock")
    return Settings(
        broker_url=os.environ.get("SUITE_BROKER_URL") or redis_server.url,
        database_url=f"sqlite:///{folder}/ledger.db",
        storage_url=f"file:{folder}/storage",
        prefix=f"suite{os.getpid()}",
        stock_queues=(),
    )


@pytest.fixture(scope="session")
def database(settings: Settings) -> Iterator[Database]:
    database = Database(settings.database_url)
    upgrade(database)
    yield database
    database.close()


@pytest.fixture(scope="session")
def hosted(settings: Settings, database: Database) -> Iterator[None]:
    dispatcher = Dispatcher(settings)
    ours = Worker(settings, engine="dramatiq", queues=QUEUES, concurrency=32)
    ours.start()
    for service in dispatcher.services:
        service.start()
    yield
    for service in dispatcher.services:
        service.stop()
    for service in dispatcher.services:
        service.join(10)
    ours.stop(5)
    if scheme(settings.broker_url) == "rabbitmq":
        delete_rabbitmq(settings.broker_url, settings.prefix)


@pytest.fixture
def stub_broker(settings: Settings, database: Database, hosted: None) -> Iterator[SuiteBroker]:
    broker = SuiteBroker(settings, database)
    broker.boot()
    yield broker
    with Producer.from_settings(settings) as producer:
        broker.end(producer)


@pytest.fixture
def stub_worker(stub_broker: SuiteBroker) -> SuiteWorker:
    return SuiteWorker(stub_broker)


@pytest.fixture(params=["redis", "stub"])
def result_backend(request: pytest.FixtureRequest, redis_server: RedisServer) -> Any:
    return RedisBackend(url=redis_server.url) if request.param == "redis" else StubBackend()


@pytest.fixture
def rate_limiter_backend(redis_server: RedisServer) -> Any:
    return LimitsBackend(url=redis_server.url)


@pytest.fixture
def pickle_encoder() -> Iterator[None]:
    before = dramatiq.get_encoder()
    set_encoder(dramatiq.PickleEncoder())
    yield
    set_encoder(before)
