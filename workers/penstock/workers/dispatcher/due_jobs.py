"""Sends jobs whose time has come, and buries what a dead worker left that nobody may run again."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from datetime import timedelta

from penstock.config.errors import PenstockError, QueueFull
from penstock.ledger.sql.database import Database
from penstock.ledger.transitions import due
from penstock.ledger.transitions.abandoned import bury_abandoned
from penstock.ledger.transitions.lost import SILENT_LEASES
from penstock.producers.senders import Sender
from penstock.workers.dispatcher.poller import Poller, log

BATCH = 500
_FULL_FOR_SECONDS = 1.0


def send_due(database: Database, sender: Sender, limit: int = 500, but: Iterable[str] = ()) -> int:
    """Hand due jobs to the broker. Returns how many; 0: nothing is due.

    Raises:
        BrokerUnavailable, QueueFull: none of them is marked as sent, and all are due again. LedgerUnavailable.
    """
    began = time.monotonic()
    rows, until = due.reserve(database, limit, but)
    if not rows:
        return 0
    try:
        sender.send([due.envelope_of(row) for row in rows])
    except PenstockError:
        due.release(database, rows, until)
        raise
    due.mark_as_sent(database, rows, until, began)
    return len(rows)


class DueJobs(Poller):
    """Sends what is due.

    Arguments:
        ready: what to wait for before the first sending.
    """

    name = "due jobs"
    interval_seconds = 0.05

    def __init__(self, database: Database, sender: Sender, ready: threading.Event | None = None) -> None:
        super().__init__()
        self._database, self._sender, self._ready = database, sender, ready
        self._full: dict[str, float] = {}

    def work(self) -> bool:
        if self._ready is not None and not self._ready.is_set():
            return False
        now = time.monotonic()
        self._full = {queue: until for queue, until in self._full.items() if until > now}
        try:
            return send_due(self._database, self._sender, BATCH, but=self._full) >= BATCH
        except QueueFull as error:
            # Its jobs wait in the ledger; those of other queues must not wait behind them.
            log.warning("%s; its due jobs wait", error)
            self._full[error.queue] = now + _FULL_FOR_SECONDS
            return True

    def close(self) -> None:
        self._sender.close()


class Rescue(Poller):
    name = "rescue"
    interval_seconds = 1.0

    def __init__(self, database: Database, lease: timedelta) -> None:
        super().__init__()
        self._database, self._patience = database, SILENT_LEASES * lease

    def work(self) -> bool:
        buried = bury_abandoned(self._database, patience=self._patience)
        for job_id in buried:
            log.error("job %s is a dead letter: its worker died, and it must not run twice", job_id)
        return bool(buried)
