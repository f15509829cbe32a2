"""An idle worker asks little of its servers, and is not later for that."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import redis
import sqlalchemy as sa
from support.ledgers import set_up
from support.polling import until
from support.servers.shared import POSTGRES_URL, broker_url, delete_queues
from support.stack import PAIRS, Stack

from penstock.ledger.members import controls
from penstock.ledger.members.orders import give_order
from penstock.workers.local.up.redis_server import RedisServer

LEASE_SECONDS = 9.0
COMMITS_PER_SECOND, REDIS_COMMANDS_PER_SECOND = 1.1 * 3 / LEASE_SECONDS, 3.0
"""One commit a beat, of which there are three in a lease; the test sees each up to a twentieth of a second late."""
WINDOW_SECONDS = 2 * LEASE_SECONDS / 3
_COMMITS = sa.text("SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = :name")


class Counts:
    """Transactions of a ledger's database and commands of a Redis, as these servers count them."""

    def __init__(self, database_url: str, redis_url: str) -> None:
        self._name = sa.make_url(database_url).database
        self._engine = sa.create_engine(POSTGRES_URL, isolation_level="AUTOCOMMIT")
        self._redis = redis.Redis.from_url(redis_url)

    def close(self) -> None:
        self._engine.dispose()
        self._redis.close()

    def per_second(self) -> tuple[float, float]:
        """Transactions and commands a second, over the next seconds, from one transaction to another: a worker that
        beats each five seconds does so twice or three times in ten."""
        before, began = self._next()
        time.sleep(WINDOW_SECONDS / 2)
        after, ended = self._next()
        return (after[0] - before[0]) / (ended - began), (after[1] - before[1]) / (ended - began)

    def _next(self) -> tuple[tuple[int, int], float]:
        """The counts when there is one more transaction, and the time."""
        [before, _] = self._read()
        until(lambda: self._read()[0] > before, pause=0.05)
        return self._read(), time.monotonic()

    def _read(self) -> tuple[int, int]:
        with self._engine.connect() as connection:
            commits: int = connection.execute(_COMMITS, {"name": self._name}).scalar_one()
        by_command = self._redis.info("commandstats")
        return commits, sum(each["calls"] for name, each in by_command.items() if name != "cmdstat_info")


@pytest.mark.slow
@pytest.mark.postgres
@pytest.mark.rabbitmq
@pytest.mark.parametrize(("engine", "broker"), PAIRS)
def test_an_idle_worker_asks_little_of_its_servers(
    engine: str, broker: str, postgres_url: str, own_redis: RedisServer, prefix: str, tmp_path: Path
) -> None:
    url = broker_url(broker, own_redis)
    stack = Stack(engine, url, prefix, tmp_path, lease_seconds=LEASE_SECONDS, database_url=set_up(postgres_url))
    counts = Counts(postgres_url, own_redis.url)
    try:
        stack.start_worker()
        until(stack.live_workers, "a worker that lives", unless=lambda: _ended(stack))

        def is_quiet() -> bool:  # once in several windows: it may still start, or the server may tidy up
            commits, commands = counts.per_second()
            assert commits <= COMMITS_PER_SECOND, f"{commits:.2f} transactions/s"
            assert commands <= REDIS_COMMANDS_PER_SECOND, f"{commands:.2f} commands/s"
            return True

        until(is_quiet, unless=lambda: _ended(stack))
        assert len(stack.live_workers()) == 1
    finally:
        counts.close()
        stack.stop()
        delete_queues(broker, prefix)


@pytest.mark.slow
@pytest.mark.postgres
def test_an_idle_dispatcher_asks_the_ledger_in_one_statement(
    postgres_url: str, own_redis: RedisServer, prefix: str, tmp_path: Path
) -> None:
    """Twenty times a second, and seldom more; each of its services by itself made a hundred transactions."""
    stack = Stack(
        "dramatiq", own_redis.url, prefix, tmp_path, lease_seconds=LEASE_SECONDS, database_url=set_up(postgres_url)
    )
    counts = Counts(postgres_url, own_redis.url)
    try:
        stack.start_dispatcher()

        def is_quiet() -> bool:
            transactions, commands = counts.per_second()
            assert 5 < transactions < 30, f"{transactions:.1f} transactions/s"
            assert 2 < commands < 15, f"{commands:.1f} commands/s"
            return True

        until(is_quiet, unless=lambda: _ended(stack))
    finally:
        counts.close()
        stack.stop()


def test_an_idle_worker_follows_controls_and_orders_long_before_its_next_beat(
    ledger_url: str, redis_url: str, prefix: str, tmp_path: Path
) -> None:
    """A third of this lease is longer than any wait of a test."""
    stack = Stack("dramatiq", redis_url, prefix, tmp_path, lease_seconds=1000.0, database_url=ledger_url)
    try:
        process = stack.start_worker()
        [worker] = until(stack.live_workers, "a worker that lives", unless=lambda: _ended(stack))

        def concurrency() -> int | None:
            return stack.live_workers()[0].member.concurrency

        for slots in (3, 5):
            controls.tune(stack.database, "acme", "concurrency", slots, actor="anna")
            until(lambda slots=slots: concurrency() == slots)
        give_order(stack.database, worker.member.name, "drain", actor="anna", lease=stack.settings.lease)
        until(lambda: process.poll() is not None, "the end of the worker")
        assert process.poll() == 0
    finally:
        stack.stop()


def _ended(stack: Stack) -> str | None:
    return stack.logs() if any(process.poll() is not None for process in stack.processes) else None
