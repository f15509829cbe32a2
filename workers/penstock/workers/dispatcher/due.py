"""Sends jobs whose time has come, and buries what a dead worker left that nobody may run again."""

from __future__ import annotations

import threading
import time
from datetime import timedelta

from penstock.config.errors import QueueFull
from penstock.producers.senders import Sender
from penstock.schemas.database import Database
from penstock.workers.dispatcher.pollers import Poller, log
from penstock.workers.ledger.delays import send_due
from penstock.workers.ledger.rescues import bury_abandoned
from penstock.workers.ledger.resending import SILENT_LEASES

BATCH = 500
_FULL_FOR_SECONDS = 1.0


class DueJobs(Poller):
    """Sends what is due.

    Arguments:
        after: what to wait for before the first sending.
    """

    name = "due jobs"
    interval_seconds = 0.05

    def __init__(self, database: Database, sender: Sender, after: threading.Event | None = None) -> None:
        super().__init__()
        self._database, self._sender, self._after = database, sender, after
        self._full: dict[str, float] = {}

    def work(self) -> bool:
        if self._after is not None and not self._after.is_set():
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
