"""Prunes old rows, in small batches with pauses, so that workers do not notice."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator

from penstock.config.settings import Settings
from penstock.ledger.retention.pruning import Counts, Pruning
from penstock.ledger.sql.database import Database
from penstock.producers.storage import Storage, make_storage
from penstock.workers.dispatcher.poller import Poller, log

PASS_EVERY_SECONDS = 300.0
_REST = 4
"""The pause after a batch is this many times as long as the batch."""
_SHARE = 50
"""All passes together take at most this part (one in so many) of the time."""


class Retention(Poller):
    """Runs a pruning pass from time to time."""

    name = "retention"
    interval_seconds = 1.0

    def __init__(self, settings: Settings, database: Database) -> None:
        super().__init__()
        self._settings, self._database = settings, database
        self._storage: Storage | None = None
        self._steps: Iterator[Counts] | None = None
        self._counts: Counts = Counter()
        self._began = 0.0
        # Not at once: a dispatcher that has just started has more urgent work. Random: several must not prune together.
        self._pass_at = time.monotonic() + random.uniform(0.2, 1.0) * PASS_EVERY_SECONDS

    def run_once(self) -> bool:
        began = time.monotonic()
        if self._steps is None:
            if began < self._pass_at:
                return False
            self._steps, self._counts, self._began = self._pruning().steps(), Counter(), began
        try:
            counts = next(self._steps, None)
        except BaseException:
            self._steps = None  # a generator that has raised is at its end
            raise
        now = time.monotonic()
        if counts is None:
            self._end(now)
            return False
        self._counts += counts
        self.stopping.wait(_REST * (now - began))
        return True

    def close(self) -> None:
        if self._storage is not None:
            self._storage.close()

    def _pruning(self) -> Pruning:
        return Pruning(self._database, self._settings.retention, self._open_storage)

    def _end(self, now: float) -> None:
        if self._counts:
            counts = ", ".join(f"{count} {name}" for name, count in sorted(self._counts.items()))
            log.info("pruned in %.1f s: %s", now - self._began, counts)
        self._steps = None
        self._pass_at = now + max(PASS_EVERY_SECONDS, (now - self._began) / (_REST + 1) * _SHARE)

    def _open_storage(self) -> Storage:
        if self._storage is None:
            self._storage = make_storage(self._settings.storage_url)
        return self._storage
