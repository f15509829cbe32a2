"""Wakes jobs that a limit has held back: the oldest first, and no more than may run."""

from __future__ import annotations

import time

from penstock.config.settings import Settings
from penstock.ledger.rows import limit_waits
from penstock.ledger.sql.database import Database
from penstock.producers.limits import open_store
from penstock.producers.limits.store import FreeSlot, LimitStore
from penstock.producers.senders import Sender, open_sender_from
from penstock.workers.dispatcher.due_jobs import send_due
from penstock.workers.dispatcher.poller import Poller

_SLOTS = 100
"""Slots that are checked in one round."""
_MOST = 500
"""Jobs of one slot that are woken in one round."""
_SEARCH_SECONDS = 5.0
"""Pause between two searches of the ledger for waiting jobs: Redis may have lost them, or missed them while down."""


class Limits(Poller):
    """Looks every 30 ms, because an unused slot is lost throughput, and sends the jobs that it wakes."""

    name, source = "limits", "due"
    interval_seconds = 0.03

    def __init__(self, database: Database, store: LimitStore, sender: Sender) -> None:
        super().__init__()
        self._database, self._store, self._sender = database, store, sender
        self._search_at = 0.0

    @classmethod
    def open(cls, settings: Settings, database: Database) -> list[Limits]:
        """The service where there is a store; else an empty list."""
        store = open_store(settings)
        if store is None:
            return []
        return [cls(database, store, open_sender_from(settings))]

    def run_once(self) -> bool:
        if time.monotonic() >= self._search_at:
            self._store.mark_wanted(limit_waits.slots(self._database))
            self._search_at = time.monotonic() + _SEARCH_SECONDS
        slots = self._store.take_free(_SLOTS)
        if sum(map(self._wake, slots)):
            self.sent += send_due(self._database, self._sender)
        return len(slots) == _SLOTS

    def close(self) -> None:
        self._sender.close()
        self._store.close()

    def _wake(self, free: FreeSlot) -> int:
        """Wake jobs of a slot. Returns how many are due now."""
        turn = limit_waits.turn(self._database, free.slot, min(free.count, _MOST))
        # The slots come first: a job that reaches a worker before its slot is kept would be held back again.
        self._store.wake(free, turn.job_ids, more=turn.more)
        limit_waits.wake(self._database, turn)
        return len(turn.job_ids)
