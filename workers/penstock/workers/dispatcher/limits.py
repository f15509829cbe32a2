"""Wakes jobs that a limit has held back: the oldest first, and no more than may run. And those that a pause has held
back, when it has ended."""

from __future__ import annotations

import threading
import time
from datetime import timedelta

import sqlalchemy as sa

from penstock.config.settings import Settings
from penstock.ledger.members import controls
from penstock.ledger.rows.waits import limit_waits
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
_SEEN, _REMEMBERED = timedelta(seconds=1), timedelta(minutes=1)
"""Within the first of these, workers see the end of a pause with a heartbeat. One that is late may still hold a job
back, which is then woken again."""
_POLL_SECONDS, _POLL_ON_SECONDS = 0.03, 1.0
"""Pause between two looks for free slots; they go on for so long after the lookout has last seen jobs that wait."""
_SEARCH_SECONDS = 5.0
"""Pause between two searches of the ledger for waiting jobs: Redis may have lost them, or missed them while down."""


class Limits(Poller):
    """Looks every 30 ms while jobs wait: an unused slot is lost throughput. Sends the jobs that it wakes."""

    name, source = "limits", "due"
    interval_seconds = _POLL_SECONDS

    def __init__(self, database: Database, store: LimitStore, sender: Sender) -> None:
        super().__init__()
        self._database, self._store, self._sender = database, store, sender
        self._search_at = self._poll_until = 0.0
        self._idle_seconds = _POLL_SECONDS

    @classmethod
    def open(cls, settings: Settings, database: Database) -> list[Limits]:
        """The service where there is a store; else an empty list."""
        store = open_store(settings)
        if store is None:
            return []
        return [cls(database, store, open_sender_from(settings))]

    def work(self) -> sa.ColumnElement[bool]:
        return limit_waits.any_waits()

    def be_watched(self, interval_seconds: float) -> None:
        self.interval_seconds = self._idle_seconds = interval_seconds

    def run_once(self) -> bool:
        if self.woken:
            self._poll_until = time.monotonic() + _POLL_ON_SECONDS
        self.interval_seconds = _POLL_SECONDS if time.monotonic() < self._poll_until else self._idle_seconds
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


class Pauses(Poller):
    """Wakes jobs that waited for the end of a pause: the oldest first.

    Arguments:
        due: set where jobs are due now.
    """

    name = "pauses"
    interval_seconds = 0.25

    def __init__(self, database: Database, due: threading.Event) -> None:
        super().__init__()
        self._database, self._due = database, due

    def work(self) -> sa.ColumnElement[bool]:
        return controls.any_ended(_SEEN)

    def run_once(self) -> bool:
        more = False
        for pause in controls.ended(self._database, _SEEN):
            turn = limit_waits.turn(self._database, pause.slot, _MOST)
            limit_waits.wake(self._database, turn, in_order=True)
            if turn.job_ids:
                self._due.set()
            if turn.more:
                more = True
            elif not turn.job_ids:
                controls.forget(self._database, pause, _REMEMBERED)
        return more
