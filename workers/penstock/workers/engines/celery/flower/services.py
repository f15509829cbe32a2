"""Services that pages ask: the settings, the ledger, the broker."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Hashable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, TypeVar

from penstock.config.settings import Settings
from penstock.ledger.sql.database import Database
from penstock.producers import Producer
from penstock.producers.explain import QueuePositions, open_positions
from penstock.producers.limits import open_store
from penstock.producers.limits.store import LimitStore
from penstock.producers.senders import open_backlogs, open_peeks, open_sender_from
from penstock.producers.senders.backlogs import QueueBacklog, QueueBacklogs
from penstock.producers.senders.known_queues import KEPT_SECONDS, KnownQueues
from penstock.producers.senders.peeks import Peeks
from penstock.workers.fleet.arrivals import Arrivals

T = TypeVar("T")

_THREADS = 8
"""Pages that are read at the same time; the others wait."""


class Services:
    """Connections of one console, opened when they are first used."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.ledger = Database(settings.database_url)
        self._kept: dict[Hashable, tuple[float, Any]] = {}
        self._locks: dict[Hashable, threading.Lock] = {}
        self._looking = threading.Lock()
        self.arrivals = Arrivals()
        self.threads = ThreadPoolExecutor(_THREADS, "penstock console")
        """Pages are read here: neither SQL nor the broker may hold up the loop, which takes in events as well."""

    def kept(self, key: Hashable, seconds: float, make: Callable[[], T]) -> T:
        """A value that is made again when it is older than that: many pages ask for it, every two seconds.

        Arguments:
            key: of which there are few.
        """
        with self._locks.setdefault(key, threading.Lock()):
            until, value = self._kept.get(key, (0.0, None))
            if time.monotonic() >= until:
                value = make()
                self._kept[key] = time.monotonic() + seconds, value
            return value  # type: ignore[no-any-return]

    @cached_property
    def queues(self) -> KnownQueues:
        """All queues, for a job that the ledger does not know."""
        return KnownQueues(self.settings, self.ledger, kept_seconds=KEPT_SECONDS)

    @cached_property
    def sender(self) -> Any:
        return open_sender_from(self.settings)

    @cached_property
    def limits(self) -> LimitStore | None:
        return open_store(self.settings)

    def backlogs(self, queues: Collection[str]) -> dict[str, QueueBacklog]:
        """The jobs that wait in these queues, and in others of the broker. Raises BrokerUnavailable."""
        with self._looking:
            backlogs = self._backlogs.read(queues)
            self.arrivals.add(time.monotonic(), self._backlogs.added)
            return backlogs

    @cached_property
    def _backlogs(self) -> QueueBacklogs:
        return open_backlogs(self.settings)

    @cached_property
    def peeks(self) -> Peeks | None:
        """A look at jobs in the broker; None: it allows none."""
        return open_peeks(self.settings)

    @cached_property
    def producer(self) -> Producer:
        return Producer.from_settings(self.settings)

    @cached_property
    def positions(self) -> QueuePositions:
        """Finds jobs in the broker's queues."""
        settings = self.settings
        return open_positions(
            settings.broker_url, prefix=settings.prefix, timeout_seconds=settings.broker_timeout_seconds
        )

    def close(self) -> None:
        self.threads.shutdown(wait=False, cancel_futures=True)
        for name in ("producer", "sender", "positions", "limits", "peeks", "_backlogs"):
            if self.__dict__.get(name) is not None:
                self.__dict__[name].close()
        self.ledger.close()
