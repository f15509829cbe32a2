"""The intake: the one thread that fetches deliveries off the broker, as many as the executor has capacity for."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Sequence
from typing import Protocol

from penstock.config.errors import BrokerUnavailable
from penstock.config.supervision import Outage, faults, start_thread
from penstock.workers.brokers.consumer import Consumer, Delivery
from penstock.workers.executor.runtime.meter import Meter

log = logging.getLogger("penstock.intake")

_WAIT_SECONDS = 1.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
_STALE_SECONDS = 10.0
_LONGEST_STEP_SECONDS = 15.0
"""A step of a call of the broker's client has time limits of its own, below this."""
_LONGEST_OPEN_SECONDS = 60.0
"""Likewise while it connects, which may ask a name server and several silent sentinels first."""
_FEW, _TURN_SECONDS = 8, 0.0002
"""After so few deliveries the queue is empty: the executor's loop gets the interpreter for a moment, so that a lone job
begins before the intake asks for the next."""


class Sink(Protocol):
    """The executor, which takes the deliveries over."""

    def wait_for_capacity(self, timeout_seconds: float) -> int: ...

    def submit(self, deliveries: Sequence[Delivery]) -> None: ...


class Intake:
    """Fetches until stopped, over any number of lost connections.

    Arguments:
        meter: measures fetches.
    """

    def __init__(self, consumer: Consumer, sink: Sink, meter: Meter) -> None:
        self.consumer, self._meter = consumer, meter
        self._sink = sink
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._last_turn = time.monotonic()
        self._calls_broker = False
        self._connected = False
        self._pause = _FIRST_PAUSE
        self._outage = Outage()

    def start(self) -> None:
        self._thread = start_thread("penstock intake", self._run, self._stopping)

    def stop(self) -> None:
        """Fetch no more. The consumer stays open, so that what it handed out can be settled."""
        self._stopping.set()
        self.consumer.wake()
        if self._thread is not None:
            self._thread.join()
            self.consumer.stop_consuming()

    @property
    def alive(self) -> bool:
        """Whether it really consumes: connected, and its loop has turned a short while ago. A ping proves less."""
        return self._connected and time.monotonic() - self._last_turn < _STALE_SECONDS

    def not_ready(self) -> str | None:
        """Why it does not consume now; None: it does."""
        return None if self.alive else "the broker does not answer"

    def not_live(self) -> str | None:
        """Why it makes no progress; None: it does, or waits for the broker, or has been stopped."""
        if self._thread is None or self._stopping.is_set():
            return None
        if not self._thread.is_alive():
            return "the intake has ended"
        if not self._calls_broker:
            longest, moved_at = _STALE_SECONDS, self._last_turn
        else:
            longest = _LONGEST_STEP_SECONDS if self._connected else _LONGEST_OPEN_SECONDS
            moved_at = max(self._last_turn, self.consumer.step_at)
        seconds = time.monotonic() - moved_at
        return f"the intake stopped {seconds:.0f} s ago" if seconds > longest else None

    def _turn(self, *, calls_broker: bool) -> None:
        self._calls_broker, self._last_turn = calls_broker, time.monotonic()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._turn(calls_broker=True)
                self.consumer.open()
                self._consume()
            except BrokerUnavailable as error:
                if self._pause == _FIRST_PAUSE:
                    faults["broker unavailable"] += 1
                if self._outage.is_new(error):
                    log.error("%s; trying again until it is back", error)
            finally:
                self._connected = False
            self._turn(calls_broker=False)
            self._stopping.wait(random.uniform(self._pause / 2, self._pause))
            self._pause = min(self._pause * 2, _LONGEST_PAUSE)

    def _consume(self) -> None:
        while not self._stopping.is_set():
            self._turn(calls_broker=False)
            limit = self._sink.wait_for_capacity(_WAIT_SECONDS)
            if self._stopping.is_set():
                return
            deliveries: Sequence[Delivery] = []
            if limit > 0:
                began = time.perf_counter()
                self._turn(calls_broker=True)
                deliveries = self.consumer.fetch(limit, _WAIT_SECONDS)
                if deliveries:
                    self._meter.step("fetch", time.perf_counter() - began)
            if not self._connected:
                # Not earlier: a broker that accepts connections but delivers from no queue is not ready.
                self._connected = True
                if self._pause > _FIRST_PAUSE:
                    log.warning("the broker is back")
                self._pause = _FIRST_PAUSE
                self._outage.end()
            if deliveries:
                self._sink.submit(deliveries)
                if len(deliveries) < min(limit, _FEW):
                    self._stopping.wait(_TURN_SECONDS)
