"""Sends jobs whose time has come."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence

import sqlalchemy as sa

from penstock.config.errors import PenstockError, QueueFull
from penstock.ledger.sql.database import Database
from penstock.ledger.transitions import due
from penstock.producers.senders import Sender
from penstock.producers.traces.sending import relayed
from penstock.workers.dispatcher.poller import Poller, log

BATCH = 500
_FULL_FOR_SECONDS = 1.0


def send_due(
    database: Database,
    sender: Sender,
    limit: int = 500,
    exclude: Iterable[str] = (),
    only: Sequence[str] | None = None,
) -> int:
    """Send due jobs. Returns how many; 0: nothing is due.

    Arguments:
        exclude: queues to leave out.
        only: ids of jobs; None: all.

    Raises:
        BrokerUnavailable, QueueFull: none of them is marked as sent, and all are due again. LedgerUnavailable.
    """
    began = time.monotonic()
    rows, until = due.reserve(database, limit, exclude, only)
    if not rows:
        return 0
    envelopes, at = [due.envelope_of(row) for row in rows], time.time_ns()
    try:
        sender.send(envelopes)
    except PenstockError:
        due.release(database, rows, until)
        raise
    relayed(envelopes, at, "due")
    due.mark_as_sent(database, rows, until, began)
    return len(rows)


class DueJobs(Poller):
    """Sends due jobs.

    Arguments:
        ready: what to wait for before the first sending.
    """

    name, source = "due jobs", "due"
    interval_seconds = 0.05

    def __init__(self, database: Database, sender: Sender, ready: threading.Event | None = None) -> None:
        super().__init__()
        self._database, self._sender, self._ready = database, sender, ready
        self._full: dict[str, float] = {}

    def work(self) -> sa.ColumnElement[bool]:
        return due.any_due()

    def run_once(self) -> bool:
        if self._ready is not None and not self._ready.is_set():
            return False
        now = time.monotonic()
        self._full = {queue: until for queue, until in self._full.items() if until > now}
        try:
            count = send_due(self._database, self._sender, BATCH, exclude=self._full)
        except QueueFull as error:
            # The jobs of this queue wait in the ledger; those of other queues must not wait behind them.
            log.warning("%s; its due jobs wait", error)
            self._full[error.queue] = now + _FULL_FOR_SECONDS
            return True
        self.sent += count
        return count >= BATCH

    def close(self) -> None:
        self._sender.close()
