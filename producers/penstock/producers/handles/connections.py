"""Connections that the handles of a producer share: ledger, storage, subscriptions. Each is opened on first use."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from penstock.config.errors import ConfigError
from penstock.producers.handles.fork_safety import register_after_fork, retain
from penstock.producers.senders import scheme

if TYPE_CHECKING:
    from penstock.ledger.sql.database import Database
    from penstock.producers.handles.subscriptions import AsyncSubscriptions, Subscriptions
    from penstock.producers.handles.waiters import AnyWaiter
    from penstock.producers.storage import Storage


class LedgerConnections:
    """Connections to the ledger, the storage and the pushed changes; thread-safe, and safe after a fork.

    Arguments:
        url: of the database; None: as `load_settings()` says when it is first needed.
        storage_url: of the storage of large results; None: likewise.
        broker_url: of the Redis through which workers push changes; None, or another broker: none are pushed.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        storage_url: str | None = None,
        broker_url: str | None = None,
        prefix: str = "penstock",
        timeout_seconds: float = 5.0,
    ) -> None:
        self._url, self._storage_url = url, storage_url
        self.broker_url = broker_url
        self._prefix, self._timeout_seconds = prefix, timeout_seconds
        self._reset()
        self._subscriptions: Subscriptions | None = None
        self._async_subscriptions: AsyncSubscriptions | None = None
        register_after_fork(self)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._database: Database | None = None
        self._storage: Storage | None = None

    def after_fork(self) -> None:
        retain(self._database, self._storage)
        self._reset()  # subscriptions see to themselves

    def open(self, waiter: AnyWaiter | None = None) -> Database:
        """The ledger, for a caller, or for a waiter that looks once more.

        Raises:
            ConfigError: SQLAlchemy is not installed; enqueueing needs none of it.
            WatchClosed: that wait is over. The ledger would be opened again, and no one would close it.
        """
        with self._lock:
            if waiter is not None:
                waiter.check()
            if self._database is None:
                try:
                    from penstock.ledger.sql.database import Database
                except ModuleNotFoundError as error:
                    raise ConfigError(f"a job handle reads the ledger: install penstock[sql] ({error})") from error

                if self._url is None:
                    from penstock.config.settings import load_settings

                    self._url = load_settings().database_url
                self._database = Database(self._url)
            return self._database

    def open_storage(self) -> Storage:
        """The storage of large results.

        Raises:
            ConfigError: its URL is wrong, or its client is not installed.
        """
        with self._lock:
            if self._storage is None:
                from penstock.producers.storage import make_storage

                if self._storage_url is None:
                    from penstock.config.settings import load_settings

                    self._storage_url = load_settings().storage_url
                self._storage = make_storage(self._storage_url)
            return self._storage

    def subscriptions(self) -> Subscriptions:
        with self._lock:
            if self._subscriptions is None:
                from penstock.producers.handles.subscriptions import Subscriptions

                self._subscriptions = Subscriptions(
                    self._push_url, prefix=self._prefix, timeout_seconds=self._timeout_seconds
                )
            return self._subscriptions

    def async_subscriptions(self) -> AsyncSubscriptions:
        with self._lock:
            if self._async_subscriptions is None:
                from penstock.producers.handles.subscriptions import AsyncSubscriptions

                self._async_subscriptions = AsyncSubscriptions(
                    self._push_url, prefix=self._prefix, timeout_seconds=self._timeout_seconds
                )
            return self._async_subscriptions

    @property
    def _push_url(self) -> str | None:
        return self.broker_url if self.broker_url is not None and scheme(self.broker_url) == "redis" else None

    def close(self) -> None:
        """Close all; waits end with WatchClosed. A later use opens it again."""
        if self._subscriptions is not None:
            self._subscriptions.close()
        with self._lock:
            if self._database is not None:
                self._database.close()
            if self._storage is not None:
                self._storage.close()
            self._database = self._storage = None

    async def close_async(self) -> None:
        """Close all, as `close` does, and end the waits of the running loop."""
        if self._async_subscriptions is not None:
            await self._async_subscriptions.close()
        self.close()
