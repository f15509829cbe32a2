"""Handing the jobs of steps to the broker by whoever has just written them, instead of reading them again."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from datetime import datetime

from penstock.config.errors import PenstockError
from penstock.ledger.rows.jobs import mark_sent, release_reserved
from penstock.ledger.sql.database import Database
from penstock.producers.senders import Sender
from penstock.schemas.wire.codec import Envelope

_CHUNK = 1000
"""Jobs that are marked in one transaction; workers have them by then."""
_AFTER_FAILURE_SECONDS = 30.0


class Sending:
    """Sends reserved jobs. What it cannot send is due at once, and so left to the service of due jobs.

    Arguments:
        sender: its own; closed with this.
        news: of the service of due jobs: set when there are jobs for it.
        ready: what to wait for before the first sending.
    """

    def __init__(self, database: Database, sender: Sender, news: threading.Event, ready: threading.Event) -> None:
        self._database, self._sender, self._ready = database, sender, ready
        self.news = news
        self._not_before = 0.0

    @property
    def is_possible(self) -> bool:
        """Not at the very beginning, nor soon after the broker has failed: nobody should wait for it here again."""
        return self._ready.is_set() and time.monotonic() >= self._not_before

    def send(self, envelopes: Sequence[Envelope], until: datetime) -> None:
        """Hand these to the broker.

        Arguments:
            until: until when their rows are reserved.

        Raises:
            LedgerUnavailable: some may have been sent, and all are due again when that time has come.
        """
        for start in range(0, len(envelopes), _CHUNK):
            chunk, began = envelopes[start : start + _CHUNK], time.monotonic()
            try:
                self._sender.send(chunk)
            except PenstockError:  # it is the other service that tells people
                self._not_before = time.monotonic() + _AFTER_FAILURE_SECONDS
                self._release(envelopes[start:], until)
                return
            self._mark(chunk, until, began)

    def _mark(self, envelopes: Sequence[Envelope], until: datetime, began: float) -> None:
        ids = [envelope.id for envelope in envelopes]
        self._database.write(lambda connection: mark_sent(connection, self._database, ids, until, began))

    def _release(self, envelopes: Sequence[Envelope], until: datetime) -> None:
        ids = [envelope.id for envelope in envelopes]
        self._database.write(lambda connection: release_reserved(connection, self._database, ids, until))
        self.news.set()

    def close(self) -> None:
        self._sender.close()
