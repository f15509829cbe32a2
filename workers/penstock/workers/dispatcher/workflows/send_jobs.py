"""Sends the jobs of steps right after they were written, without reading them again."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from datetime import datetime

from penstock.config.errors import PenstockError
from penstock.ledger.rows.jobs import mark_sent, release_reserved
from penstock.ledger.sql.database import Database
from penstock.producers.senders import Sender
from penstock.producers.traces.sending import relayed
from penstock.schemas.wire.codec import Envelope

_CHUNK = 1000
"""Jobs that are marked as sent in one transaction; workers have them by then."""
_AFTER_FAILURE_SECONDS = 30.0


class StepJobs:
    """Sends reserved jobs of steps. Jobs that it cannot send are due at once, for the service of due jobs.

    Arguments:
        sender: its own; closed with this.
        due_wakeup: wakes the service of due jobs.
        ready: what to wait for before the first sending.
    """

    def __init__(self, database: Database, sender: Sender, due_wakeup: threading.Event, ready: threading.Event) -> None:
        self._database, self._sender, self._ready = database, sender, ready
        self.due_wakeup = due_wakeup
        self._not_before = 0.0

    @property
    def can_send(self) -> bool:
        """False at the very beginning, and soon after the broker has failed: no workflow should wait for it again."""
        return self._ready.is_set() and time.monotonic() >= self._not_before

    def send(self, envelopes: Sequence[Envelope], until: datetime) -> int:
        """Send these jobs. Returns how many were sent.

        Arguments:
            until: the end of their reservation.

        Raises:
            LedgerUnavailable: some may have been sent, and all are due again when the reservation ends.
        """
        for start in range(0, len(envelopes), _CHUNK):
            chunk, began, at = envelopes[start : start + _CHUNK], time.monotonic(), time.time_ns()
            try:
                self._sender.send(chunk)
            except PenstockError:  # the service of due jobs reports it
                self._not_before = time.monotonic() + _AFTER_FAILURE_SECONDS
                self._release(envelopes[start:], until)
                return start
            relayed(chunk, at, "workflow")
            self._mark(chunk, until, began)
        return len(envelopes)

    def _mark(self, envelopes: Sequence[Envelope], until: datetime, began: float) -> None:
        ids = [envelope.id for envelope in envelopes]
        self._database.write(lambda connection: mark_sent(connection, self._database, ids, until, began))

    def _release(self, envelopes: Sequence[Envelope], until: datetime) -> None:
        ids = [envelope.id for envelope in envelopes]
        self._database.write(lambda connection: release_reserved(connection, self._database, ids, until))
        self.due_wakeup.set()

    def close(self) -> None:
        self._sender.close()
