"""Empties outboxes: what a web backend has committed is recorded and sent, and only then deleted there.

A batch is *taken* first (`taken_by`, `taken_until`; rows that another dispatcher has are skipped), and in the ledger it
waits, *reserved*, until the broker has it. A dispatcher that dies at any point leaves rows that are taken again when
the reservation ends. The ledger knows the id by then, and a second copy is refused by the claim.

A row leaves the outbox after it was sent. So to keep the order of a key, however many dispatchers there are, it is
enough to leave a row alone while an earlier one of its key is there and not in the same batch.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from penstock.config.errors import PenstockError, QueueFull
from penstock.config.settings import Settings, redact_url
from penstock.ledger.outbox.batch import OutboxBatch, OutboxEntry, raw_envelope
from penstock.ledger.outbox.rows import any_free
from penstock.ledger.outbox.store import OutboxStore
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.faults import ABOUT_DATA
from penstock.ledger.transitions.bury import bury_message
from penstock.producers.senders import Sender, open_sender_from
from penstock.producers.traces.sending import relayed
from penstock.workers.dispatcher.outbox.notifications import Notifications
from penstock.workers.dispatcher.poller import Poller, log

BATCH = 500
_POLL_SECONDS, _POLL_SECONDS_WHEN_NOTIFIED = 0.05, 0.1
_FULL_FOR_SECONDS = 1.0


def open_outboxes(settings: Settings, ledger: Database, ready: threading.Event | None = None) -> list[Poller]:
    """The services for the outbox in the ledger's database and for those that the settings name.

    Arguments:
        ready: what to wait for before the first sending.
    """
    services: list[Poller] = []
    for url in dict.fromkeys((settings.database_url, *settings.outbox_urls)):
        database = ledger if url == settings.database_url else Database(url, private=False)
        # Without the queues' max_length, and so that a slow send of theirs does not hold up the due jobs.
        sender = open_sender_from(settings)
        relay = OutboxRelay(database, ledger, sender, ready)
        services.append(relay)
        direct_url = settings.database_direct_url if database is ledger else None
        if Notifications.possible(database, direct_url):
            services.append(Notifications(database, relay.wakeup, direct_url))
    return services


class OutboxRelay(Poller):
    """Moves the jobs of one outbox to the broker.

    Attributes:
        wakeup: set when something was committed, where the database notifies us.
    """

    source = "outbox"
    interval_seconds = 0.0  # a round waits

    def __init__(
        self, database: Database, ledger: Database, sender: Sender, ready: threading.Event | None = None
    ) -> None:
        self.name = "outbox" if database is ledger else f"outbox of {redact_url(database.url)}"
        super().__init__()
        self.essential = database is ledger
        self._database, self._ledger, self._sender, self._ready = database, ledger, sender, ready
        self._store = OutboxStore(database, ledger)
        self.wakeup = threading.Event()
        self._pause = _POLL_SECONDS_WHEN_NOTIFIED if Notifications.possible(database) else _POLL_SECONDS
        self._full: dict[str, float] = {}
        self._more = True
        self._limit = BATCH

    def work(self) -> sa.ColumnElement[bool] | None:
        return any_free() if self._database is self._ledger else None

    def be_watched(self, interval_seconds: float) -> None:
        self._pause = interval_seconds

    def wake(self) -> None:
        self.wakeup.set()

    def close(self) -> None:
        self._sender.close()
        if self._database is not self._ledger:
            self._database.close()

    def run_once(self) -> bool:
        if self._ready is not None and not self._ready.is_set():
            self._ready.wait(self._pause)
            return False
        expects_rows = self._more or self.wakeup.is_set()
        self.wakeup.clear()  # before looking: what is committed meanwhile wakes the next round
        self._more = (expects_rows or self._store.has_rows()) and self._relay()
        if not self._more:
            self.wakeup.wait(self._pause)
        return True

    def _relay(self) -> bool:
        """Relay one batch. Returns whether there may be more."""
        try:
            batch = self._store.take(self._limit, self._full_queues())
        except PenstockError:
            raise
        except ABOUT_DATA as error:
            self._isolate(error)
            return True
        self._limit = min(self._limit * 2, BATCH)
        for envelope, cause in batch.undecodable:
            dead_letter_id = bury_message(self._ledger, envelope, envelope.body, cause.reason, cause.detail)
            self.report_deaths(self._ledger, [dead_letter_id])
        cancelled = self._store.cancel_unseen(batch)
        self._send(batch, batch.to_send(cancelled))
        return batch.more

    def _send(self, batch: OutboxBatch, entries: Sequence[OutboxEntry]) -> None:
        began, at = time.monotonic(), time.time_ns()
        envelopes = [entry.envelope for entry in entries]
        try:
            if entries:
                self._sender.send(envelopes)
        except PenstockError as error:
            self._store.give_back(batch, entries)
            if not isinstance(error, QueueFull):
                raise
            log.warning("%s; its jobs wait in the outbox", error)
            self._full[error.queue] = time.monotonic() + _FULL_FOR_SECONDS
            return
        relayed(envelopes, at, "outbox")
        self.sent += len(entries)
        self._store.mark_sent(batch, entries, began)

    def _full_queues(self) -> list[str]:
        now = time.monotonic()
        self._full = {queue: until for queue, until in self._full.items() if until > now}
        return list(self._full)

    def _isolate(self, error: Exception) -> None:
        """Find the row that a database refuses, by halving the batch, and make it a dead letter, so that the others go
        on."""
        if self._limit > 1 or not self._store.last_rows:
            self._limit = max(self._limit // 2, 1)
            return
        [row] = self._store.last_rows
        text = str(error.orig) if isinstance(error, DBAPIError) else str(error)
        reason = f"{type(error).__name__}: {text}"
        envelope = raw_envelope(row)
        dead_letter_id = bury_message(self._ledger, envelope, envelope.body, "undecodable", reason)
        self._store.delete(row)
        self.report_deaths(self._ledger, [dead_letter_id])
