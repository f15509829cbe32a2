"""Saves jobs that were lost: with a Redis that was wiped, a queue that was deleted, or a worker that died."""

from __future__ import annotations

import threading
import time
from datetime import timedelta

from penstock.config.errors import LedgerUnavailable
from penstock.ledger.sql.database import Database
from penstock.ledger.transitions import lost
from penstock.ledger.transitions.abandoned import bury_abandoned, find_abandoned
from penstock.workers.brokers.loss_detection import Lane, LossDetector
from penstock.workers.dispatcher.poller import Poller, log

_LONGEST_PATIENCE = timedelta(hours=1)
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
        self._database, self._lanes = database, lanes
        self._patience, self._silence = lost.PATIENT_LEASES * lease, lost.SILENT_LEASES * lease
        self._patiences: dict[Lane, tuple[timedelta, float]] = {}
        """Lane → patience, and when it was last needed."""
        self._check_at = time.monotonic() + self._patience.total_seconds()
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
        count = 0 if born is None else lost.put_back(self._database, born)
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
            count += (batch := lost.put_back_running(self._database, silence, lane))
        if count:
            self._patiences[lane] = (min(2 * patience, _LONGEST_PATIENCE), time.monotonic())
            log.warning("queue %s, priority %s: the broker has lost jobs; %d are sent again", *lane, count)


class Reaper(Poller):
    """Makes dead letters of jobs whose worker died, and which must not run twice.

    A job is looked at twice, a lease apart: after an outage of the ledger every lease has ended, and workers that live
    renew theirs within that time.
    """

    name = "reaper"
    interval_seconds = 1.0

    def __init__(self, database: Database, lease: timedelta) -> None:
        super().__init__()
        self._database, self._patience = database, lost.SILENT_LEASES * lease
        self._lease_seconds = lease.total_seconds()
        self._found_at: dict[str, float] = {}
        """Id of an abandoned job → when it was found, with no outage since."""

    def run_once(self) -> bool:
        try:
            now = time.monotonic()
            abandoned = find_abandoned(self._database, patience=self._patience)
            self._found_at = {job_id: self._found_at.get(job_id, now) for job_id in abandoned}
            due = [job_id for job_id, at in self._found_at.items() if now - at >= self._lease_seconds]
            job_ids = bury_abandoned(self._database, due, patience=self._patience)
        except LedgerUnavailable:
            self._found_at.clear()
            raise
        self.report_deaths(self._database, job_ids)
        return bool(job_ids)
