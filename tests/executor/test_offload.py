"""The ledger as the executor's loop sees it: there, away, or silent."""

from __future__ import annotations

import asyncio
import threading

import pytest
from polling import until_async

from penstock.config.errors import LedgerUnavailable
from penstock.workers.executor import io_threads
from penstock.workers.executor.capacity import Room
from penstock.workers.executor.io_threads import Offload


def test_a_silent_database_counts_as_unavailable_until_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(io_threads, "_SILENT_SECONDS", 0.2)
    answer = threading.Event()

    async def main() -> None:
        io = Offload("w", Room(1))
        await asyncio.sleep(0.3)
        assert not io.ledger_away  # nobody asked
        first = asyncio.create_task(io.ledger(answer.wait))
        second = asyncio.create_task(io.ledger(lambda: "second"))
        await until_async(lambda: io.ledger_away)
        answer.set()
        await first
        assert await second == "second"
        assert not io.ledger_away
        io.close()

    asyncio.run(main())


def test_a_failed_heartbeat_alone_marks_the_ledger_unavailable_and_stops_fetching() -> None:
    away = True

    def beat() -> None:
        if away:
            raise LedgerUnavailable("gone")

    async def main() -> None:
        nonlocal away
        room = Room(8)
        io = Offload("w", room)
        with pytest.raises(LedgerUnavailable):
            await io.ledger_once(beat)
        assert io.ledger_away
        assert room.free() == 0
        away = False
        await io.ledger_once(beat)
        assert not io.ledger_away
        assert room.free() > 0
        io.close()

    asyncio.run(main())
