"""The queues that a command looks at."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from penstock.config.errors import BrokerUnavailable

if TYPE_CHECKING:
    from penstock.config.settings import Settings
    from penstock.ledger.sql.database import Database


class KnownQueues:
    """The names of all queues: of the settings, imported kinds, workers and jobs on record, and the broker's own.

    They are looked up each time it is iterated.

    Arguments:
        database: None: the ledger is not asked.

    Attributes:
        trouble: why the broker's own queues are missing; None: they are there.
    """

    def __init__(self, settings: Settings, database: Database | None) -> None:
        self._settings, self._database = settings, database
        self.trouble: str | None = None

    def __iter__(self) -> Iterator[str]:
        from penstock.ledger.members import heartbeats
        from penstock.ledger.queries import jobs
        from penstock.producers.senders import find_queues
        from penstock.schemas.jobs.kind import DISPATCHER_QUEUE, registry
        from penstock.schemas.states import State

        names = {DISPATCHER_QUEUE} | registry.queues() | set(self._settings.queues)
        if self._database is not None:
            names |= set(heartbeats.known_kinds(self._database).values()) | set(
                jobs.counts(self._database, list(State))
            )
        self.trouble = None
        try:
            names |= find_queues(self._settings)
        except BrokerUnavailable as error:
            self.trouble = f"{error}; queues that only the broker knows are left out"
        return iter(sorted(names))
