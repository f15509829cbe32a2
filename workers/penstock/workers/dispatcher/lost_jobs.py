"""Saves jobs that were lost: with a Redis that was wiped, a queue that was deleted, or a worker that died."""

from __future__ import annotations

import threading
import time
from datetime import datetime, timedelta

from penstock.config.errors import LedgerUnavailable
from penstock.ledger.members import heartbeats
from penstock.ledger.sql.database import Database
from penstock.ledger.transitions import lost
from penstock.ledger.transitions.abandoned import bury_abandoned
from penstock.workers.brokers.loss_detection import Lane, LossDetector
from penstock.workers.dispatcher.poller import Poller, log
from penstock.workers.executor.attempt.memory import peak_memory

_LONGEST_PATIENCE = timedelta(hours=1)
_UNDER_WAY_SECONDS, _SELDOM_SECONDS = 60.0, 10.0
"""So long after a wipe, its jobs are looked for each second, since a sending that was under way may be marked late;
then at this pause."""
_SHARE = 50
"""A check takes at most this part (one in so many) of the time, however many jobs are queued."""


class LostJobs(Poller):
    """Puts back jobs that the broker had according to the ledger, and cannot have any more.

    A wiped Redis is noticed in the next round. Otherwise a job that was sent two leases ago counts as lost as soon as
    its lane holds nothing as old. Each time that happens, the lane gets twice as long the next time, so that jobs which
    are only late (fetched ahead by a busy worker) are not sent again and again.
    """

    name = "lost jobs"
    interval_seconds = 1.0

    def __init__(self, database: Database, lanes: LossDetector, lease: timedelta) -> None:
        super().__init__()
        self._database, self._lanes, self._lease = database, lanes, lease
        self._patience, self._silence = lost.PATIENT_LEASES * lease, lost.SILENT_LEASES * lease
        self._patiences: dict[Lane, tuple[timedelta, float]] = {}
        """Lane → patience, and when it was last needed."""
        self._check_at = time.monotonic() + self._patience.total_seconds()
        self._born: datetime | None = None
        self._put_back_at = self._settled_at = 0.0
        self.first_pass_done = threading.Event()
        """Set after the first round. Jobs that are sent before it count as sent before the wipe, and go out twice."""

    def run_once(self) -> bool:
        try:
            wiped = self._put_back_wiped()
        finally:
            self.first_pass_done.set()
        if wiped:
            return True
        if time.monotonic() >= self._check_at:
            began = time.monotonic()
            for lane in self._lanes_with_losses():
                self._put_back(*lane)
            took = time.monotonic() - began
            self._check_at = time.monotonic() + max(self._patience.total_seconds() / 3, took * _SHARE)
        return False

    def close(self) -> None:
        self._lanes.close()

    def _put_back_wiped(self) -> int:
        born = self._lanes.data_since(lambda: lost.clock(self._database))
        now = time.monotonic()
        if born is None or (born == self._born and now < self._put_back_at):
            return 0
        if born != self._born:
            self._born, self._settled_at, self._put_back_at = born, now + _UNDER_WAY_SECONDS, now
        count = lost.put_back(self._database, born)
        if not count and now > self._settled_at:
            self._put_back_at = now + _SELDOM_SECONDS
        if count:
            log.warning("Redis has lost all it had before %s: %d jobs are sent again", born, count)
        return count

    def _lanes_with_losses(self) -> list[tuple[Lane, timedelta]]:
        """Lanes that miss jobs, each with the age of the oldest job it may still hold."""
        missed = lost.suspects(self._database, self._patience, self._silence)
        now = time.monotonic()
        for lane, (patience, at) in list(self._patiences.items()):
            if lane not in missed and now - at > 2 * patience.total_seconds():
                del self._patiences[lane]
        ages = self._lanes.oldest(sorted(missed)) if missed else {}
        return [(lane, age) for lane, age in ages.items() if age is not None]

    def _put_back(self, lane: Lane, age: timedelta) -> None:
        patience, _ = self._patiences.get(lane, (self._patience, 0.0))
        count, batch = 0, lost.BATCH
        before = lost.clock(self._database) - age - patience
        while batch >= lost.BATCH and not self.stopping.is_set():
            count += (batch := lost.put_back(self._database, before, lane))
        batch = lost.BATCH
        while batch >= lost.BATCH and not self.stopping.is_set():
            silence = max(age + patience, self._silence)
            count += (batch := lost.put_back_running(self._database, silence, lane, lease=self._lease))
        if count:
            self._patiences[lane] = (min(2 * patience, _LONGEST_PATIENCE), time.monotonic())
            log.warning("queue %s, priority %s: the broker has lost jobs; %d are sent again", *lane, count)


class Reaper(Poller):
    """Makes dead letters of jobs whose worker died, and which must not run twice.

    It judges a silence only if it has seen the ledger open to all for as long. Each round does, as a newcomer, all that
    a silent worker has to do: connect, and renew a lease. While that fails, or this process is frozen, a worker may be
    silent for the same reason.

    Arguments:
        member: a name among all workers: that of its dispatcher.
    """

    name = "reaper"

    def __init__(self, database: Database, lease: timedelta, member: str) -> None:
        super().__init__()
        self.interval_seconds = lease.total_seconds() / 3
        self._database, self._lease, self._member = database, lease, member
        self._newcomer = Database(database.url, pool_size=1)
        self._patience = lost.SILENT_LEASES * lease
        self._longest_gap_seconds = 2 * lease.total_seconds()
        self._open_since: float | None = None
        self._looked_at = 0.0

    def run_once(self) -> bool:
        try:
            self._renew_as_newcomer()
            now = time.monotonic()
            if self._open_since is None or now - self._looked_at > self._longest_gap_seconds:
                self._open_since = now
            self._looked_at = now
            if now - self._open_since < (self._lease + self._patience).total_seconds():
                return False
            job_ids = bury_abandoned(self._database, patience=self._patience, lease=self._lease)
        except LedgerUnavailable:
            self._open_since = None
            raise
        self.report_deaths(self._database, job_ids)
        return bool(job_ids)

    def _renew_as_newcomer(self) -> None:
        try:
            heartbeats.beat(self._newcomer, self._member, lease=self._lease, peak_memory_bytes=peak_memory())
        finally:
            self._newcomer.close()  # the next round connects again
