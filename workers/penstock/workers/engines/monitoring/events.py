"""Celery's events, so that Flower and other monitors of Celery show the workers of both engines.

Heartbeats are always sent. Events of jobs are sent while a monitor asks for them (`enable_events`, which monitors
repeat), and past a rate for a sample of the jobs, so that neither the broker nor the monitor stalls.

The loop that runs jobs only appends to a buffer. The thread that answers remote control turns that into messages and
sends them in batches, over the connection that it has. In a long outage of the broker the oldest are dropped.
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
from zlib import crc32

from pydantic_core import to_json

from penstock.ledger.transitions.claim import Claim
from penstock.ledger.transitions.outcome import AttemptOutcome
from penstock.schemas.wire.codec import Message
from penstock.workers.engines.monitoring import kombu_connection
from penstock.workers.engines.monitoring.event_messages import EventName, Fields, message_of
from penstock.workers.executor.runtime.observers import Observer

log = logging.getLogger("penstock.events")

BEAT_SECONDS = 2.0
ASKED_SECONDS = 60.0
"""Events of jobs are sent for so long after a monitor asked for them."""
JOBS_PER_SECOND = 50
"""Jobs of a worker whose events are sent in a second; of more, a sample: all events of a job, or none."""
BUFFER = 20_000
"""Events kept during an outage of the broker."""
_BATCH = 100
"""Events in one message."""
_BATCHES = 50
_LINGER_SECONDS = 0.5
"""The delay of an event, so that more go in one message: each takes the interpreter from the jobs for a millisecond."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 10.0


class Events(Observer):
    """An `Observer` that publishes, and the heartbeat of its worker.

    Arguments:
        hostname: the worker's name.
        active: how many jobs run now.
        clock: with `forward()`, shared with the worker's remote control.

    Attributes:
        started_counts: attempts started so far, by kind.
        wake: called from any thread when a turn is due earlier than the last one said.
    """

    def __init__(self, *, hostname: str, active: Callable[[], int], clock: Any) -> None:
        self.hostname, self.clock = hostname, clock
        self._asked_at = float("-inf")
        self._sample = Sample()
        self.started_counts: Counter[str] = Counter()
        self.wake: Callable[[], None] = lambda: None
        self.dropped = 0
        self._active = active
        self._buffer: deque[tuple[EventName, Any, float]] = deque(maxlen=BUFFER)
        self._unsent: list[Fields] = []
        self._awake = self._beat_asked = self._stopping = False
        self._send_at = self._beat_at = self._retry_at = 0.0
        self._pause = _FIRST_PAUSE
        self._ended = threading.Event()
        self._common: Fields = {"hostname": hostname, "pid": os.getpid()}
        self._connection: Any = None
        self._producer: Any = None
        self._failing = False

    @property
    def enabled(self) -> bool:
        """Whether events of jobs are sent: a monitor has asked for them within the last minute."""
        return time.monotonic() - self._asked_at < ASKED_SECONDS

    def enable(self) -> None:
        """Send events of jobs for the next minute. From any thread."""
        self._asked_at = time.monotonic()

    def disable(self) -> None:
        """Send no events of jobs until a monitor asks again. From any thread."""
        self._asked_at = float("-inf")

    # Observer: on the executor's loop.

    def received(self, message: Message) -> None:
        self._append("received", message.id, message)

    def refused(self, message: Message, reason: str) -> None:
        if reason == "cancelled":
            self.revoked(message.id)

    def started(self, claim: Claim) -> None:
        self.started_counts[claim.message.kind.name] += 1
        self._append("started", claim.message.id, claim)

    def ended(self, outcome: AttemptOutcome) -> None:
        self._append("ended", outcome.claim.message.id, outcome)

    def revoked(self, job_id: str) -> None:
        """Publish that a waiting job was cancelled through this worker. From any thread."""
        self._append("revoked", job_id, job_id)

    def _append(self, event: EventName, job_id: str, subject: Any) -> None:
        if not self.enabled or not self._sample.includes(job_id, is_new=event == "received"):
            return
        buffer = self._buffer
        if len(buffer) == BUFFER:
            self.dropped += 1
        buffer.append((event, subject, time.time()))
        if not self._awake:
            self._send_at = time.monotonic() + _LINGER_SECONDS
            self._awake = True
            self.wake()

    # Any thread.

    def stop(self) -> None:
        """Send the rest, and that the worker is offline, if the broker takes it without delay."""
        self._stopping = True
        if self._connection is not None:
            self.wake()
            self._ended.wait(2 * kombu_connection.CONNECT_SECONDS)

    def beat(self) -> None:
        """Send a heartbeat now."""
        self._beat_asked = True
        self.wake()

    # The thread of the connection.

    def attach(self, connection: Any) -> None:
        """Publish over this connection of kombu, at each turn."""
        self._connection, self._producer, self._retry_at = connection, None, 0.0

    def detach(self) -> None:
        """Publish no more until the next `attach`: the connection is lost, or about to be closed."""
        self._connection = self._producer = None
        if self._stopping:
            self._ended.set()

    def turn(self) -> float:
        """Publish what is due. Returns the seconds until the next turn is.

        Raises:
            Exception: what the transport raises for a connection that is lost.
        """
        now = time.monotonic()
        if self._connection is None or now < self._retry_at:
            return max(self._retry_at - now, _FIRST_PAUSE)
        try:
            self._publish_due(now)
        except Exception as error:  # whatever a transport raises: events must never harm the jobs
            connection = self._connection
            self._fail(error, of_transport=isinstance(error, connection.connection_errors + connection.channel_errors))
            if isinstance(error, connection.connection_errors):
                raise
            return self._pause
        self._pause = _FIRST_PAUSE
        due_at = min(self._beat_at, self._send_at) if self._awake else self._beat_at
        return max(due_at - time.monotonic(), 0.0)

    def _publish_due(self, now: float) -> None:
        if self._producer is None:
            self._open()
            self._publish("worker-online", self._beat())
            self._beat_at = now + BEAT_SECONDS
        elif self._beat_asked or now >= self._beat_at:
            self._beat_asked = False
            self._publish("worker-heartbeat", self._beat())
            self._beat_at = now + BEAT_SECONDS
        if self._stopping or now >= self._send_at or len(self._buffer) >= _BATCH:
            self._awake = False
            self._send()
            self._log_dropped()
        if self._stopping:
            self._publish("worker-offline", self._beat())
            self.detach()

    def _open(self) -> None:
        from kombu.entity import Exchange
        from kombu.messaging import Producer

        # Celery's own choice: its Redis transport has no topics (celery/kombu#436).
        kind = "fanout" if self._connection.transport.driver_type == "redis" else "topic"
        exchange = Exchange("celeryev", type=kind)  # type: ignore[no-untyped-call]
        channel = kombu_connection.open_channel(self._connection)
        self._producer = Producer(channel, exchange)  # type: ignore[no-untyped-call]
        if self._failing:
            log.warning("events are sent again")
            self._failing = False

    def _fail(self, error: Exception, *, of_transport: bool) -> None:
        """Begin with another channel after a pause."""
        if not self._failing:
            text = "events cannot be sent: %s: %s; the latest %d are kept"
            log.warning(text, type(error).__name__, error, BUFFER, exc_info=None if of_transport else error)
            self._failing = True
        self._producer, self._retry_at = None, time.monotonic() + self._pause
        self._pause = min(self._pause * 2, _LONGEST_PAUSE)
        if self._stopping:
            self._ended.set()

    def _log_dropped(self) -> None:
        if self.dropped:
            log.warning("%d events were dropped", self.dropped)
            self.dropped = 0

    def _send(self) -> None:
        """Publish the buffer. What fails stays in `_unsent` for the next connection."""
        for _ in range(_BATCHES):
            while self._buffer and len(self._unsent) < _BATCH:
                self._make(*self._buffer.popleft())
            if not self._unsent:
                return
            self._publish_raw("task.multi", self._unsent)
            self._unsent = []
        self._awake = True  # for the rest, at the next turn

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


class Sample:
    """Which jobs are in the sample: all while few come, else a fraction by their ids, so that all events of a job are
    sent or none."""

    def __init__(self, jobs_per_second: int = JOBS_PER_SECOND) -> None:
        self._most = jobs_per_second
        self._second, self._count = 0, 0
        self._share = 1.0

    def includes(self, job_id: str, *, is_new: bool) -> bool:
        if is_new:
            self._note()
        return self._share >= 1 or crc32(job_id.encode("utf-8", "replace")) < self._share * 2**32

    def _note(self) -> None:
        """Count a job. The share is that of the last second that had jobs, or less within a flood that begins."""
        second = int(time.monotonic())
        if second != self._second:
            quiet = second - self._second > 1
            self._share = 1.0 if quiet or self._count <= self._most else self._most / self._count
            self._second, self._count = second, 0
        self._count += 1
        if self._count > self._most:
            self._share = min(self._share, self._most / self._count)


SOFTWARE: Fields = {"sw_ident": "penstock", "sw_ver": version("penstock"), "sw_sys": platform.system()}


def _encoded(body: Any) -> bytes:
    try:
        return to_json(body)  # five times as fast as kombu's encoder
    except ValueError:  # a lone surrogate in the text of an error, which UTF-8 has no bytes for
        return json.dumps(body).encode()


def _utc_offset() -> float:
    """Celery's `utcoffset`: hours west of UTC."""
    return (time.altzone if time.localtime().tm_isdst else time.timezone) / 3600
