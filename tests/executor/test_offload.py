"""The ledger as the executor's loop sees it: there, away, or silent."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

import pytest

from penstock.config.errors import LedgerUnavailable
from penstock.workers.executor import io_threads
from penstock.workers.executor.capacity import Room
from penstock.workers.executor.io_threads import Offload


async def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def test_a_database_that_does_not_answer_counts_as_away_until_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(io_threads, "_SILENT_SECONDS", 0.2)
    answer = threading.Event()

    async def main() -> None:
        asked = Offload("w", Room(1))
        await asyncio.sleep(0.3)
        assert not asked.ledger_away  # nobody asked
        first = asyncio.create_task(asked.ledger(answer.wait))
        second = asyncio.create_task(asked.ledger(lambda: "second"))
        await eventually(lambda: asked.ledger_away)
        answer.set()
        await first
        assert await second == "second"
        assert not asked.ledger_away
        asked.close()

    asyncio.run(main())


def test_a_beat_alone_tells_that_the_ledger_is_away_and_closes_the_room() -> None:
    away = True

    def beat() -> None:
        if away:
            raise LedgerUnavailable("gone")

    async def main() -> None:
        nonlocal away
        room = Room(8)
        asked = Offload("w", room)
        with pytest.raises(LedgerUnavailable):
            await asked.ledger_once(beat)
        assert asked.ledger_away
        assert room.free() == 0
        away = False
        await asked.ledger_once(beat)
        assert not asked.ledger_away
        assert room.free() > 0
        asked.close()

    asyncio.run(main())
