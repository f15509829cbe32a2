"""The intake: the one thread that fetches deliveries off the broker, as many as the executor has room for."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Sequence
from typing import Protocol

from penstock.config.errors import BrokerUnavailable
from penstock.workers.brokers import Consumer, Delivery

log = logging.getLogger("penstock.intake")

_WAIT_SECONDS = 1.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
_STALE_SECONDS = 10.0
_FEW, _TURN_SECONDS = 8, 0.0002
"""After so few deliveries the queue is empty: the executor's loop has the interpreter to itself for a moment, so that a
lone job begins before the intake asks for the next."""


class Sink(Protocol):
    """What takes the deliveries: the executor."""

    def wait_for_room(self, timeout_seconds: float) -> int: ...

    def submit(self, deliveries: Sequence[Delivery]) -> None: ...


class Intake:
    """Fetches until stopped, over any number of lost connections."""

    def __init__(self, consumer: Consumer, sink: Sink) -> None:
        self.consumer = consumer
        self._sink = sink
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="penstock intake", daemon=True)
        self._last_turn = time.monotonic()
        self._connected = False
        self._pause = _FIRST_PAUSE

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Fetch no more. The consumer stays open, so that what it handed out can be settled."""
        self._stopping.set()
        self.consumer.wake()
        self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether it really consumes: connected, and round its loop a short while ago. A ping says less."""
        return self._connected and self._thread.is_alive() and time.monotonic() - self._last_turn < _STALE_SECONDS

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self.consumer.open()
                self._consume()
            except BrokerUnavailable as error:
                if self._pause == _FIRST_PAUSE:
                    log.error("%s; trying again until it is back", error)
            except Exception:
                # Whatever a broker's client raises, a worker that answers pings but fetches nothing is the worst end.
                log.exception("the intake failed; connecting anew")
            self._connected = False
            self._stopping.wait(random.uniform(self._pause / 2, self._pause))
            self._pause = min(self._pause * 2, _LONGEST_PAUSE)

    def _consume(self) -> None:
        while not self._stopping.is_set():
            self._last_turn = time.monotonic()
            room = self._sink.wait_for_room(_WAIT_SECONDS)
            if self._stopping.is_set():
                return
            deliveries = self.consumer.fetch(room, _WAIT_SECONDS) if room > 0 else []
            if not self._connected:
                # Not before: a broker that takes connections and opens its queues to nobody is no broker yet.
                self._connected = True
                if self._pause > _FIRST_PAUSE:
                    log.warning("the broker is back")
                self._pause = _FIRST_PAUSE
            if deliveries:
                self._sink.submit(deliveries)
                if len(deliveries) < min(room, _FEW):
                    self._stopping.wait(_TURN_SECONDS)
