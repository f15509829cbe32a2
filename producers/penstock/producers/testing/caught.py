"""Jobs that a test has caught: in memory, and in a ledger of its own once one is needed."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

from penstock.config.errors import ConfigError
from penstock.producers.testing.clock import Clock
from penstock.producers.testing.jobs import Enqueued
from penstock.schemas.wire.codec import Envelope, decode

if TYPE_CHECKING:
    from penstock.ledger.sql.database import Database
    from penstock.producers.storage import Storage
    from penstock.producers.testing.ledger import PooledTestLedger


class CaughtJobs:
    """Jobs that producers have sent in a test; thread-safe."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.RLock()
        self._envelopes: dict[str, Envelope] = {}  # until there is a ledger
        self._order: dict[str, int] = {}
        self._ledger: PooledTestLedger | None = None

    def catch(self, envelopes: Sequence[Envelope]) -> None:
        """Keep what a producer sends.

        Raises:
            UndecodableMessage: no worker could read it, so it must not pass a test.
        """
        for envelope in envelopes:
            decode(envelope)
        with self._lock:
            for envelope in envelopes:
                self._order.setdefault(envelope.id, len(self._order))
                if self._ledger is None:
                    self._envelopes.setdefault(envelope.id, envelope)
            if self._ledger is not None:
                self._record(self._ledger, envelopes)

    def waiting(self) -> list[Enqueued]:
        """Jobs that wait, in the order of their enqueueing."""
        with self._lock:
            if self._ledger is None:
                return [Enqueued.of_envelope(envelope) for envelope in self._envelopes.values()]
            from penstock.producers.testing.rows import waiting_rows

            jobs = [Enqueued.of_row(row, self._clock.ahead) for row in waiting_rows(self._ledger.database)]
        last = len(self._order)
        return sorted(jobs, key=lambda job: (job.enqueued_at, self._order.get(job.id, last)))

    def open(self) -> PooledTestLedger:
        """The test's ledger, with all jobs caught so far.

        Raises:
            ConfigError: SQLAlchemy is not installed.
        """
        with self._lock:
            if self._ledger is None:
                try:
                    from penstock.producers.testing.ledger import PooledTestLedger
                except ModuleNotFoundError as error:
                    raise ConfigError(
                        "status, keys and time need a ledger, in a test too: install penstock[sql]"
                    ) from error

                self._ledger = PooledTestLedger.acquire()
                self._record(self._ledger, list(self._envelopes.values()))
            return self._ledger

    @property
    def database(self) -> Database:
        return self.open().database

    def open_storage(self) -> Storage:
        from penstock.producers.storage import make_storage

        return make_storage(self.open().storage_url)

    def travel(self, by: timedelta) -> None:
        """Make all that is on record older, which comes to the same as a later time; no one's clock is touched."""
        database = self.database
        from penstock.producers.testing.rows import age

        with self._lock:
            age(database, by)
            self._clock.advance(by)

    def close(self) -> None:
        if self._ledger is not None:
            self._ledger.release()

    def _record(self, ledger: PooledTestLedger, envelopes: Sequence[Envelope]) -> None:
        from penstock.producers.testing.rows import record_as_sent

        record_as_sent(ledger.database, envelopes)
