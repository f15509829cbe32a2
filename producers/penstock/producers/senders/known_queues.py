"""The queues of an installation, wherever they are known."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from penstock.config.errors import BrokerUnavailable

if TYPE_CHECKING:
    from penstock.config.settings import Settings
    from penstock.ledger.sql.database import Database

KEPT_SECONDS = 10.0
"""For processes that many people ask: to find a Redis' own queues reads the names of all its keys."""


class KnownQueues:
    """The names of all queues: of the settings, imported kinds, workers and jobs on record, and the broker's own.

    They are looked up each time it is iterated, from any thread.

    Arguments:
        database: None: the ledger is not asked.
        kept_seconds: for how long the broker's own queues, or that it did not list them, are kept.

    Attributes:
        trouble: why the broker's own queues are missing; None: they are there.
    """

    def __init__(self, settings: Settings, database: Database | None, *, kept_seconds: float = 0.0) -> None:
        self._settings, self._database, self._kept_seconds = settings, database, kept_seconds
        self._looking = threading.Lock()
        self._own: set[str] = set()
        self._look_at = 0.0
        self.trouble: str | None = None

    def __iter__(self) -> Iterator[str]:
        from penstock.ledger.members import heartbeats
        from penstock.ledger.queries import jobs
        from penstock.schemas.jobs.kind import DISPATCHER_QUEUE, registry
        from penstock.schemas.states import State

        names = {DISPATCHER_QUEUE} | registry.queues() | set(self._settings.queues)
        if self._database is not None:
            names |= set(heartbeats.known_kinds(self._database).values()) | set(
                jobs.counts(self._database, list(State))
            )
        return iter(sorted(names | self._of_broker()))

    def _of_broker(self) -> set[str]:
        from penstock.producers.senders import find_queues

        with self._looking:
            if time.monotonic() >= self._look_at:
                try:
                    self._own, self.trouble = find_queues(self._settings), None
                except BrokerUnavailable as error:
                    self._own = set()
                    self.trouble = f"{error}; queues that only the broker knows are left out"
                self._look_at = time.monotonic() + self._kept_seconds
            return self._own
