"""The ledger and the broker as seen from the executor's loop: each in a thread of its own, outages waited out."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from penstock.config.errors import LedgerUnavailable
from penstock.workers.brokers import Consumer, Delivery
from penstock.workers.executor.capacity import Room

log = logging.getLogger("penstock.executor")
T = TypeVar("T")

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0
_SILENT_SECONDS = 5.0
"""A database that answers nothing for as long is away, though its connection says nothing of it."""


class Offload:
    """Runs blocking work for the loop. One thread for the ledger: its batches follow each other and never compete.

    Attributes:
        patient: False makes a missing ledger an error at once, for a worker that must end.
    """

    def __init__(self, name: str, room: Room) -> None:
        self.patient = True
        self._room = room
        self._away = False
        self._asked = 0  # of the ledger, and not answered
        self._heard_at = 0.0
        self._ledger = ThreadPoolExecutor(1, f"{name} ledger")
        self._broker = ThreadPoolExecutor(1, f"{name} broker")

    @property
    def ledger_away(self) -> bool:
        """Whether the database could not be reached the last time, when the room is closed; or does not answer."""
        return self._away or (self._asked > 0 and time.monotonic() - self._heard_at > _SILENT_SECONDS)

    async def ledger_once(self, work: Callable[[], T]) -> T:
        """Raises LedgerUnavailable; the worker's own beat learns so that the ledger is away, or back."""
        if not self._asked:
            self._heard_at = time.monotonic()
        self._asked += 1
        try:
            value = await asyncio.get_running_loop().run_in_executor(self._ledger, work)
        except LedgerUnavailable as error:
            if not self._away:
                log.error("%s; jobs are held until it is back", error)
            self._away = self._room.closed = True
            raise
        finally:
            self._asked -= 1
            self._heard_at = time.monotonic()
        if self._away:
            log.warning("the ledger is back")
            self._away = self._room.closed = False
            self._room.give(0)
        return value

    async def ledger(self, work: Callable[[], T]) -> T:
        """Run `work`; while the database is away, hold everything and try again.

        Raises:
            LedgerUnavailable: only when no longer `patient`.
        """
        pause = _FIRST_PAUSE
        while True:
            try:
                return await self.ledger_once(work)
            except LedgerUnavailable:
                if not self.patient:
                    raise
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)

    async def ack(self, deliveries: list[Delivery]) -> None:
        await self._settle(lambda consumer, part: consumer.ack(part), deliveries)

    async def release(self, deliveries: list[Delivery]) -> None:
        await self._settle(lambda consumer, part: consumer.release(part), deliveries)

    def close(self) -> None:
        self._ledger.shutdown()
        self._broker.shutdown()

    async def _settle(self, how: Callable[[Consumer, list[Delivery]], None], deliveries: list[Delivery]) -> None:
        by_consumer: dict[Consumer, list[Delivery]] = {}
        for delivery in deliveries:
            by_consumer.setdefault(delivery.consumer, []).append(delivery)
        for consumer, part in by_consumer.items():
            await asyncio.get_running_loop().run_in_executor(self._broker, partial(how, consumer, part))
