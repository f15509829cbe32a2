"""Patient pools: a thread or coroutine waits for a connection, and goes on as soon as there is one. And shared pools:
threads take turns on one, and none waits for long."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine
from support.polling import WAIT_SECONDS, until

from penstock.ledger.sql import pools
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.engine import make_engine
from penstock.ledger.sql.pools import patient_options


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as threads:
        yield threads


@pytest.fixture(autouse=True)
def _short_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "WAIT_SECONDS", 0.02)


def ask(engine: sa.Engine) -> int:
    with engine.connect() as connection:
        return int(connection.execute(sa.text("SELECT 7")).scalar_one())


def looks(engine: sa.Engine) -> list[int]:
    """A list that grows with each look of a thread for a connection in vain."""
    seen: list[int] = []
    pool = engine.pool
    original = pool._pool.get  # type: ignore[attr-defined]

    def get(block: bool = True, timeout: float | None = None) -> object:
        seen.append(1)
        return original(block, timeout)

    pool._pool.get = get  # type: ignore[attr-defined]
    return seen


def test_threads_wait_for_a_connection_however_often_they_look(ledger_url: str, threads: ThreadPoolExecutor) -> None:
    engine = make_engine(ledger_url, **patient_options(2))
    seen = looks(engine)
    with engine.connect(), engine.connect():
        answers = [threads.submit(ask, engine) for _ in range(5)]
        until(lambda: len(seen) > 40, "many looks")
        assert not any(answer.done() for answer in answers)
    assert [answer.result(WAIT_SECONDS) for answer in answers] == [7] * 5
    engine.dispose()


def test_a_connection_that_cannot_be_made_keeps_no_thread_waiting(sqlite_url: str, threads: ThreadPoolExecutor) -> None:
    engine = make_engine(sqlite_url, **patient_options(1))
    connecting, fails = threading.Event(), threading.Event()
    broken = True

    @sa.event.listens_for(engine, "do_connect")
    def connect(*_arguments: object) -> None:
        if broken:
            connecting.set()
            assert fails.wait(WAIT_SECONDS)
            raise OSError("no route")

    seen = looks(engine)
    first: Future[int] = threads.submit(ask, engine)
    assert connecting.wait(WAIT_SECONDS)
    second: Future[int] = threads.submit(ask, engine)
    until(lambda: len(seen) > 3, "a thread that waits for the place of the first")
    broken = False
    fails.set()
    with pytest.raises(OSError, match="no route"):
        first.result(WAIT_SECONDS)
    assert second.result(WAIT_SECONDS) == 7
    engine.dispose()


def test_closing_a_pool_ends_the_wait(sqlite_url: str, threads: ThreadPoolExecutor) -> None:
    engine = make_engine(sqlite_url, **patient_options(1))
    pool, seen = engine.pool, looks(engine)
    with engine.connect():
        answer = threads.submit(ask, engine)
        until(lambda: len(seen) > 3, "a thread that waits")
        engine.dispose()
        assert answer.result(WAIT_SECONDS) == 7
    pool.dispose()  # the thread's connection has returned to it
    engine.dispose()


@pytest.mark.parametrize("server", ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def test_coroutines_wait_for_a_connection(server: str, request: pytest.FixtureRequest) -> None:
    url = str(request.getfixturevalue(f"{server}_url")).replace("sqlite:", "sqlite+aiosqlite:")

    async def run() -> list[int]:
        engine = create_async_engine(url, **patient_options(2, is_async=True))

        async def hold() -> int:
            async with engine.connect() as connection:
                await asyncio.sleep(0.1)
                return int((await connection.execute(sa.text("SELECT 7"))).scalar_one())

        try:
            return await asyncio.gather(*(hold() for _ in range(12)))
        finally:
            await engine.dispose()

    assert asyncio.run(run()) == [7] * 12


@pytest.mark.parametrize(("most", "kept", "beyond"), [(1, 1, 0), (5, 3, 2), (20, 10, 10)])
def test_half_of_the_connections_are_kept_open(most: int, kept: int, beyond: int) -> None:
    options = patient_options(most)
    assert (options["pool_size"], options["max_overflow"]) == (kept, beyond)


def test_threads_take_turns_on_the_connection_of_a_shared_pool(
    ledger: Database, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "_TURN_SECONDS", WAIT_SECONDS)
    opened: list[object] = []
    with closing(Database(ledger.url, pool_size=1)) as shared:
        sa.event.listen(shared.engine, "connect", lambda *_: opened.append(1))
        with shared.engine.connect():
            answers = [threads.submit(ask, shared.engine) for _ in range(5)]
            until(lambda: len(shared.engine.pool._pool.not_empty._waiters) == 5)  # type: ignore[attr-defined]
        assert [answer.result(WAIT_SECONDS) for answer in answers] == [7] * 5
    assert len(opened) == 1


def test_a_thread_does_not_wait_for_long_behind_a_slow_transaction(ledger: Database) -> None:
    """A lease is renewed while another statement waits for a lock."""
    closed: list[object] = []
    with closing(Database(ledger.url, pool_size=1)) as shared:
        sa.event.listen(shared.engine, "close", lambda *_: closed.append(1))
        with shared.engine.connect():
            assert ask(shared.engine) == 7
        assert ask(shared.engine) == 7
        assert len(closed) == 1, "the one that was made for it"
