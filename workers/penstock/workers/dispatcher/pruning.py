"""Prunes old rows, in small batches with pauses, so that workers do not notice; and adds up the rates."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from penstock.config.settings import Settings
from penstock.ledger.retention.folding import BATCH as FOLDED
from penstock.ledger.retention.folding import drop_short_spans, fold
from penstock.ledger.retention.pruning import BATCH, Counts, Pruning
from penstock.ledger.sql.database import Database
from penstock.producers.storage import Storage, make_storage
from penstock.workers.dispatcher.poller import Poller, log

PASS_EVERY_SECONDS = 300.0
_REST, SHORT_REST = 4.0, 0.5
"""The pause after a batch is this many times as long as the batch; in a pass that takes longer than usual, it is
short."""
_SHARE = 50
"""Reading rows that are kept takes at most this part (one in so many) of the time. Deleting takes what it needs."""
_DROP_SECONDS = 600.0
"""Pause between two times of dropping rates of short spans."""
REPORT_SECONDS = 900.0
"""In a pass that takes longer, deleting is compared with what had arrived, each time so much of it is over."""


@dataclass(frozen=True, slots=True)
class _Mark:
    """A point of a pass: when it was there, how far it had walked, and the rows that it had deleted."""

    at: float
    reached: datetime
    deleted: int


class Retention(Poller):
    """Runs a pruning pass from time to time.

    A pass walks the jobs in the order in which they were made. While it walks slower than the jobs were made, more
    jobs come to the end of their retention than it deletes.

    Arguments:
        clock: seconds, as `time.monotonic`.

    Attributes:
        pruned: rows that were deleted since this began, by what they are.
    """

    name = "retention"
    interval_seconds = 1.0
    longest_round_seconds = 600.0  # it rests after a batch, and deletes objects of the storage

    def __init__(self, settings: Settings, database: Database, *, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._settings, self._database = settings, database
        self._storage: Storage | None = None
        self._pass: Pruning | None = None
        self._steps: Iterator[Counts] = iter(())
        self._counts: Counts = Counter()
        self.pruned: Counts = Counter()
        self._began = self._reading = 0.0
        self._mark: _Mark | None = None
        self._is_behind = False
        # Not at once: a dispatcher that has just started has more urgent work. Random: several must not prune together.
        self._pass_at = clock() + random.uniform(0.2, 1.0) * PASS_EVERY_SECONDS

    def run_once(self) -> bool:
        began = self._clock()
        if self._pass is None:
            if began < self._pass_at:
                return False
            self._begin(began)
        assert self._pass is not None
        try:
            counts = next(self._steps, None)
        except BaseException:
            self._pass = None  # a generator that has raised is at its end
            raise
        now = self._clock()
        if counts is None:
            self._end(now)
            return False
        self._counts += counts
        self.pruned += counts
        self._reading += (now - began) * max(1 - counts.total() / BATCH, 0.0)
        self._compare(now, self._pass.reached)
        self.stopping.wait((_REST if now - self._began < PASS_EVERY_SECONDS else SHORT_REST) * (now - began))
        return True

    def close(self) -> None:
        if self._storage is not None:
            self._storage.close()

    def _begin(self, now: float) -> None:
        self._pass = Pruning(self._database, self._settings.retention, self._open_storage)
        self._steps = self._pass.steps()
        self._counts, self._began, self._reading, self._mark = Counter(), now, 0.0, None

    def _compare(self, now: float, reached: datetime | None) -> None:
        """Report a pass that has walked slower than the jobs were made since the last comparison."""
        if reached is None:
            return
        here = _Mark(now, reached, self._counts.total())
        before = self._mark = self._mark or here
        walked, took, deleted = reached - before.reached, now - before.at, here.deleted - before.deleted
        if took >= REPORT_SECONDS:
            self._mark = here
            if walked < timedelta(seconds=took) and deleted:
                self._is_behind = True
                log.warning(
                    "retention does not keep up: in %.0f s it has deleted %d rows (%.0f/s), of jobs that were made "
                    "within %.0f s; shorten [retention], give the database more, or run penstock db prune, which "
                    "takes no rests",
                    *(took, deleted, deleted / took, walked.total_seconds()),
                )

    def _end(self, now: float) -> None:
        if self._counts:
            counts = ", ".join(f"{count} {name}" for name, count in sorted(self._counts.items()))
            log.info("pruned in %.1f s: %s", now - self._began, counts)
        if self._is_behind and now - self._began < REPORT_SECONDS:
            self._is_behind = False
            log.warning("retention keeps up again")
        self._pass = None
        self._pass_at = now + max(PASS_EVERY_SECONDS, self._reading * _SHARE)

    def _open_storage(self) -> Storage:
        if self._storage is None:
            self._storage = make_storage(self._settings.storage_url)
        return self._storage


class Rates(Poller):
    """Adds up what workers have counted, some minutes after they wrote it."""

    name = "rates"
    interval_seconds = 10.0
    essential = False

    def __init__(self, database: Database, lease: timedelta) -> None:
        super().__init__()
        self._database, self._lease = database, lease
        self._drop_at = time.monotonic() + _DROP_SECONDS

    def run_once(self) -> bool:
        folded = fold(self._database, lease=self._lease)
        if time.monotonic() >= self._drop_at:
            drop_short_spans(self._database)
            self._drop_at = time.monotonic() + _DROP_SECONDS
        return folded == FOLDED
