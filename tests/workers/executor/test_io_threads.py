"""The ledger as the executor's loop sees it: there, unavailable, or silent."""

from __future__ import annotations

import asyncio
import threading

import pytest
from support.polling import until_async

from penstock.config.errors import LedgerUnavailable
from penstock.config.supervision import faults
from penstock.workers.executor.runtime import io_threads
from penstock.workers.executor.runtime.capacity import Capacity
from penstock.workers.executor.runtime.io_threads import IoThreads
from penstock.workers.executor.runtime.meter import Meter


def test_a_silent_database_counts_as_unavailable_until_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(io_threads, "_SILENT_SECONDS", 0.2)
    answer = threading.Event()

    async def main() -> None:
        io = IoThreads("w", Capacity(1), Meter())
        await asyncio.sleep(0.3)
        assert not io.ledger_unavailable  # no call was made
        first = asyncio.create_task(io.ledger(answer.wait))
        second = asyncio.create_task(io.ledger(lambda: "second"))
        await until_async(lambda: io.ledger_unavailable)
        answer.set()
        await first
        assert await second == "second"
        assert not io.ledger_unavailable
        io.close()

    asyncio.run(main())


def test_an_outage_is_counted_once_and_each_of_its_reasons_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    reasons = ["its connection was cut", "too many open files", "too many open files", "its connection was cut"]

    def call() -> None:
        if reasons:
            raise LedgerUnavailable(reasons.pop(0))

    async def main() -> None:
        io = IoThreads("w", Capacity(1), Meter())
        for outages in (1, 2):
            before = faults["ledger unavailable"]
            await io.ledger(call)
            assert faults["ledger unavailable"] == before + 1
            lines = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
            assert lines == outages * [f"{reason}; jobs are held until it is back" for reason in expected]
            reasons.extend(expected)
        io.close()

    expected = reasons[:2]
    asyncio.run(main())


def test_a_failed_heartbeat_alone_marks_the_ledger_unavailable_and_stops_fetching() -> None:
    unavailable = True

    def beat() -> None:
        if unavailable:
            raise LedgerUnavailable("gone")

    async def main() -> None:
        nonlocal unavailable
        capacity = Capacity(8)
        io = IoThreads("w", capacity, Meter())
        with pytest.raises(LedgerUnavailable):
            await io.ledger_once(beat)
        assert io.ledger_unavailable
        assert capacity.available() == 0
        unavailable = False
        await io.ledger_once(beat)
        assert not io.ledger_unavailable
        assert capacity.available() > 0
        io.close()

    asyncio.run(main())


def test_a_ledger_that_comes_back_does_not_open_a_worker_that_drains() -> None:
    unavailable = True

    def beat() -> None:
        if unavailable:
            raise LedgerUnavailable("gone")

    async def main() -> None:
        nonlocal unavailable
        capacity = Capacity(8)
        io = IoThreads("w", capacity, Meter())
        with pytest.raises(LedgerUnavailable):
            await io.ledger_once(beat)
        capacity.close()
        unavailable = False
        await io.ledger_once(beat)
        assert not io.ledger_unavailable
        assert capacity.available() == 0
        capacity.resize(16)
        assert capacity.available() == 0
        io.close()

    asyncio.run(main())
