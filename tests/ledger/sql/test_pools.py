"""Patient pools: a thread or coroutine waits for a connection, and goes on as soon as there is one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine
from support.polling import WAIT_SECONDS, until

from penstock.ledger.sql import pools
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


def test_coroutines_wait_for_a_connection(sqlite_url: str) -> None:
    async def run() -> list[int]:
        engine = create_async_engine(
            sqlite_url.replace("sqlite:", "sqlite+aiosqlite:"), **patient_options(2, is_async=True)
        )

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
