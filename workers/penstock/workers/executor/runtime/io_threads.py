"""The ledger and the broker as the executor's loop sees them: each in a thread of its own, outages waited out."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from penstock.config.errors import LedgerUnavailable
from penstock.config.supervision import Outage, faults
from penstock.workers.brokers.consumer import Consumer, Delivery
from penstock.workers.executor.runtime.capacity import Capacity
from penstock.workers.executor.runtime.meter import Meter

log = logging.getLogger("penstock.executor")
T = TypeVar("T")

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0
_LONGEST_SETTLE_SECONDS = 15.0
"""A call that settles deliveries has time limits of its own, below this, while the broker answers."""
_SILENT_SECONDS = 5.0
"""A database that answers nothing for this long is unavailable, though its connection reports no error."""


class IoThreads:
    """Runs blocking calls for the loop. The ledger has one thread: its batches follow each other and never compete.

    Arguments:
        capacity: paused while the ledger is unavailable.
        meter: measures acknowledgements.

    Attributes:
        patient: False makes a missing ledger an error at once, for a worker that must end.
    """

    def __init__(self, name: str, capacity: Capacity, meter: Meter) -> None:
        self.patient = True
        self._capacity, self._meter = capacity, meter
        self._unavailable = False
        self._outage = Outage()
        self._pending_calls = 0  # to the ledger
        self._answered_at = 0.0
        self._settling_since: float | None = None
        self._ledger = ThreadPoolExecutor(1, f"{name} ledger")
        self._broker = ThreadPoolExecutor(1, f"{name} broker")

    @property
    def ledger_unavailable(self) -> bool:
        """Whether the last call could not reach the database, or a call waits for its answer too long."""
        return self._unavailable or self.waits_seconds > _SILENT_SECONDS

    @property
    def waits_seconds(self) -> float:
        """For how long the ledger has not answered the call that is under way. Safe from any thread."""
        return time.monotonic() - self._answered_at if self._pending_calls > 0 else 0.0

    def problem(self) -> str | None:
        """Why nothing is settled with the broker; None: it is. Only while the broker answers. Safe from any thread."""
        since = self._settling_since
        seconds = 0.0 if since is None else time.monotonic() - since
        return f"one acknowledgement takes {seconds:.0f} s" if seconds > _LONGEST_SETTLE_SECONDS else None

    async def ledger_once(self, call: Callable[[], T]) -> T:
        """Run `call`, and note whether the ledger is there: the worker's heartbeat notices outages this way.

        Raises:
            LedgerUnavailable: the capacity is paused until a call succeeds.
        """
        if not self._pending_calls:
            self._answered_at = time.monotonic()
        self._pending_calls += 1
        try:
            value = await asyncio.get_running_loop().run_in_executor(self._ledger, call)
        except LedgerUnavailable as error:
            if not self._unavailable:
                faults["ledger unavailable"] += 1
            if self._outage.is_new(error):
                log.error("%s; jobs are held until it is back", error)
            self._unavailable = True
            self._capacity.pause("ledger")
            raise
        finally:
            self._pending_calls -= 1
            self._answered_at = time.monotonic()
        if self._unavailable:
            log.warning("the ledger is back")
            self._unavailable = False
            self._outage.end()
            self._capacity.resume("ledger")
        return value

    async def ledger(self, call: Callable[[], T]) -> T:
        """Run `call`; while the database is unavailable, hold everything and try again.

        Raises:
            LedgerUnavailable: only when no longer `patient`.
        """
        pause = _FIRST_PAUSE
        while True:
            try:
                return await self.ledger_once(call)
            except LedgerUnavailable:
                if not self.patient:
                    raise
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)

    async def ack(self, deliveries: list[Delivery]) -> None:
        began = time.perf_counter()
        await self.broker(partial(self._settle, lambda consumer, part: consumer.ack(part), deliveries))
        self._meter.step("acknowledge", time.perf_counter() - began)

    async def release(self, deliveries: list[Delivery]) -> None:
        await self.broker(partial(self.release_now, deliveries))

    def release_now(self, deliveries: list[Delivery]) -> None:
        """In the thread that settles."""
        self._settle(lambda consumer, part: consumer.release(part), deliveries)

    async def broker(self, call: Callable[[], T]) -> T:
        """Run `call` in the thread that settles."""
        return await asyncio.get_running_loop().run_in_executor(self._broker, call)

    def soon(self, call: Callable[[], None]) -> None:
        """Run `call` in the thread that settles, without waiting for it. Safe from any thread."""
        self._broker.submit(call)

    def close(self) -> None:
        self._ledger.shutdown()
        self._broker.shutdown()

    def _settle(self, settle: Callable[[Consumer, list[Delivery]], None], deliveries: list[Delivery]) -> None:
        by_consumer: dict[Consumer, list[Delivery]] = {}
        for delivery in deliveries:
            by_consumer.setdefault(delivery.consumer, []).append(delivery)

        for consumer, part in by_consumer.items():
            self._settling_since = time.monotonic()
            try:
                settle(consumer, part)
            except Exception:  # their outcomes are on record, so the jobs that settle with them must not wait for this
                log.exception("%d deliveries could not be settled with the broker", len(part))
            finally:
                self._settling_since = None
