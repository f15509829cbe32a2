"""Celery's events, so that Flower and other monitors of Celery show the workers of both engines.

The loop that runs jobs only appends to a buffer. A thread turns that into messages, sends them in batches, and drops
the oldest in a long outage of the broker.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from pydantic_core import to_json

from penstock.config.supervision import start_thread
from penstock.ledger.transitions.claim import Claim
from penstock.ledger.transitions.outcome import AttemptOutcome
from penstock.producers.senders import scheme
from penstock.schemas.wire.codec import Message
from penstock.workers.engines.monitoring import kombu_connection
from penstock.workers.engines.monitoring.event_messages import EventName, Fields, message_of

log = logging.getLogger("penstock.events")

BEAT_SECONDS = 2.0
BUFFER = 20_000
"""Events kept during an outage of the broker."""
_BATCH = 100
"""Events in one message."""
_BATCHES = 50
_LINGER_SECONDS = 0.5
"""The delay of an event, so that more go in one message: each takes the interpreter from the jobs for a millisecond."""
_LONGEST_PAUSE = 10.0
_TIMEOUT: dict[str, dict[str, Any]] = {"redis": {"socket_timeout": kombu_connection.CONNECT_SECONDS}, "rabbitmq": {}}


class Events:
    """An `Observer` that publishes, and the heartbeat of its worker. Start it before jobs flow.

    Arguments:
        hostname: the worker's name.
        active: how many jobs run now.
        clock: with `forward()`, shared with the worker's remote control.

    Attributes:
        enabled: whether task events are sent; heartbeats always are.
        started_counts: attempts started so far, by kind.
    """

    def __init__(self, url: str, *, hostname: str, active: Callable[[], int], clock: Any) -> None:
        self.hostname, self.clock = hostname, clock
        self.enabled = True
        self.started_counts: Counter[str] = Counter()
        self.dropped = 0
        self._url, self._active = url, active
        self._buffer: deque[tuple[EventName, Any, float]] = deque(maxlen=BUFFER)
        self._unsent: list[Fields] = []
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._awake = self._beat_asked = False
        self._thread: threading.Thread | None = None
        self._common: Fields = {"hostname": hostname, "pid": os.getpid()}
        self._connection: Any = None
        self._producer: Any = None
        self._failing = False

    # Observer: on the executor's loop.

    def received(self, message: Message) -> None:
        self._append("received", message)

    def refused(self, message: Message, reason: str) -> None:
        if reason == "cancelled":
            self.revoked(message.id)

    def started(self, claim: Claim) -> None:
        self.started_counts[claim.message.kind.name] += 1
        self._append("started", claim)

    def ended(self, outcome: AttemptOutcome) -> None:
        self._append("ended", outcome)

    def revoked(self, job_id: str) -> None:
        """Publish that a waiting job was cancelled through this worker. From any thread."""
        self._append("revoked", job_id)

    def _append(self, event: EventName, subject: Any) -> None:
        if not self.enabled:
            return
        buffer = self._buffer
        if len(buffer) == BUFFER:
            self.dropped += 1
        buffer.append((event, subject, time.time()))
        if not self._awake:
            self._awake = True
            self._wake.set()

    # Any thread.

    def start(self) -> None:
        """Publish that the worker is online, as soon as the broker is there. Returns at once."""
        self._thread = start_thread("penstock events", self._run, self._stopping, vital=False)

    def stop(self) -> None:
        """Send the rest, and that the worker is offline, if the broker takes it without delay."""
        self._stopping.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(2 * kombu_connection.CONNECT_SECONDS)

    def beat(self) -> None:
        """Send a heartbeat now."""
        self._beat_asked = True
        self._wake.set()

    # The thread.

    def _run(self) -> None:
        pause, next_beat = 0.2, 0.0
        while not self._stopping.is_set():
            self._wake.wait(max(next_beat - time.monotonic(), 0))
            if self._awake and len(self._buffer) < _BATCH:
                self._stopping.wait(_LINGER_SECONDS)  # so that more go in one message
            self._wake.clear()
            self._awake = False
            try:
                if self._producer is None:
                    self._connect()
                    self._publish("worker-online", self._beat())
                    next_beat = time.monotonic() + BEAT_SECONDS
                elif self._beat_asked or time.monotonic() >= next_beat:
                    self._beat_asked = False
                    self._publish("worker-heartbeat", self._beat())
                    next_beat = time.monotonic() + BEAT_SECONDS
                self._send()
                pause = 0.2
                self._log_dropped()
            except Exception as error:  # whatever a transport raises: events must never harm the jobs
                self._disconnect(error)
                self._stopping.wait(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)
        self._publish_offline()

    def _connect(self) -> None:
        from kombu.entity import Exchange
        from kombu.messaging import Producer

        self._connection = kombu_connection.connection(self._url, **_TIMEOUT[scheme(self._url)])
        self._connection.connect()
        # Celery's own choice: its Redis transport has no topics (celery/kombu#436).
        kind = "fanout" if self._connection.transport.driver_type == "redis" else "topic"
        exchange = Exchange("celeryev", type=kind)  # type: ignore[no-untyped-call]
        channel = self._connection.default_channel
        self._producer = Producer(channel, exchange)  # type: ignore[no-untyped-call]
        if self._failing:
            log.warning("events are sent again")
            self._failing = False

    def _disconnect(self, error: Exception) -> None:
        if not self._failing:
            log.warning("events cannot be sent: %s: %s; the latest %d are kept", type(error).__name__, error, BUFFER)
            self._failing = True
        connection, self._connection, self._producer = self._connection, None, None
        if connection is not None:
            try:
                connection.collect(socket_timeout=1)
            except Exception:
                log.debug("closing the connection for events failed", exc_info=True)

    def _log_dropped(self) -> None:
        if self.dropped:
            log.warning("%d events were dropped", self.dropped)
            self.dropped = 0

    def _publish_offline(self) -> None:
        if self._producer is None:
            return
        try:
            self._send()
            self._publish("worker-offline", self._beat())
            self._connection.close()
        except Exception:
            log.debug("the last events were not sent", exc_info=True)

    def _send(self) -> None:
        """Publish the buffer. What fails stays in `_unsent` for the next connection."""
        for _ in range(_BATCHES):
            while self._buffer and len(self._unsent) < _BATCH:
                self._make(*self._buffer.popleft())
            if not self._unsent:
                return
            self._publish_raw("task.multi", self._unsent)
            self._unsent = []
        self._wake.set()  # for the rest, after the next heartbeat

    def _make(self, event: EventName, subject: Any, at: float) -> None:
        try:
            event_type, fields = message_of(event, subject)
        except Exception:  # a user's job that cannot show its fields is not a reason to connect again
            log.exception("an event of a job could not be made")
        else:
            self._unsent.append(self._stamp(event_type, fields, at))

    def _publish(self, event_type: str, fields: Fields) -> None:
        stamped = self._stamp(event_type, fields, time.time())
        self._publish_raw(event_type.replace("-", "."), stamped)

    def _publish_raw(self, routing_key: str, body: Any) -> None:
        self._producer.publish(
            _encoded(body),
            content_type="application/json",
            content_encoding="utf-8",
            routing_key=routing_key,
            headers={"hostname": self.hostname},
            delivery_mode=1,
        )

    def _stamp(self, event_type: str, fields: Fields, timestamp: float) -> Fields:
        return {
            "type": event_type,
            **self._common,
            "utcoffset": _utc_offset(),
            "clock": self.clock.forward(),
            "timestamp": timestamp,
            **fields,
        }

    def _beat(self) -> Fields:
        return {
            "freq": BEAT_SECONDS,
            "active": self._active(),
            "processed": sum(self.started_counts.values()),
            "loadavg": [round(load, 2) for load in os.getloadavg()] if hasattr(os, "getloadavg") else None,
            **SOFTWARE,
        }


SOFTWARE: Fields = {"sw_ident": "penstock", "sw_ver": version("penstock"), "sw_sys": platform.system()}


def _encoded(body: Any) -> bytes:
    try:
        return to_json(body)  # five times as fast as kombu's encoder
    except ValueError:  # a lone surrogate in the text of an error, which UTF-8 has no bytes for
        return json.dumps(body).encode()


def _utc_offset() -> float:
    """Celery's `utcoffset`: hours west of UTC."""
    return (time.altzone if time.localtime().tm_isdst else time.timezone) / 3600
