"""What the handles of a producer share: the ledger, the storage, and those who watch. Each is opened on first use."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from penstock.config.errors import ConfigError
from penstock.producers.handles.fork_safety import keep, tell_after_fork
from penstock.producers.senders import scheme

if TYPE_CHECKING:
    from penstock.ledger.sql.database import Database
    from penstock.producers.handles.subscriptions import AnyWaiter, AsyncWatching, Watching
    from penstock.producers.storage import Storage


class LedgerLink:
    """Thread-safe, and safe after a fork.

    Arguments:
        url: the database; None: as `load_settings()` says when it is first needed.
        storage_url: where large results are; None: likewise.
        broker_url: where workers push changes, if that is Redis; None: nobody pushes.
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
        self._start_anew()
        self._watching: Watching | None = None
        self._async_watching: AsyncWatching | None = None
        tell_after_fork(self)

    def _start_anew(self) -> None:
        self._lock = threading.Lock()
        self._database: Database | None = None
        self._storage: Storage | None = None

    def after_fork(self) -> None:
        keep(self._database, self._storage)
        self._start_anew()  # those who watch see to themselves

    def open(self, waiter: AnyWaiter | None = None) -> Database:
        """The ledger, for whoever asks or for somebody who waits and looks once more.

        Raises:
            ConfigError: SQLAlchemy is not installed; enqueueing needs none of it.
            WatchClosed: that wait is over. It would be opened anew, and nobody would close it.
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
        """Raises ConfigError."""
        with self._lock:
            if self._storage is None:
                from penstock.producers.storage import make_storage

                if self._storage_url is None:
                    from penstock.config.settings import load_settings

                    self._storage_url = load_settings().storage_url
                self._storage = make_storage(self._storage_url)
            return self._storage

    def watching(self) -> Watching:
        with self._lock:
            if self._watching is None:
                from penstock.producers.handles.subscriptions import Watching

                self._watching = Watching(self._push_url, prefix=self._prefix, timeout_seconds=self._timeout_seconds)
            return self._watching

    def async_watching(self) -> AsyncWatching:
        with self._lock:
            if self._async_watching is None:
                from penstock.producers.handles.subscriptions import AsyncWatching

                self._async_watching = AsyncWatching(
                    self._push_url, prefix=self._prefix, timeout_seconds=self._timeout_seconds
                )
            return self._async_watching

    @property
    def _push_url(self) -> str | None:
        return self.broker_url if self.broker_url is not None and scheme(self.broker_url) == "redis" else None

    def close(self) -> None:
        """Whoever watches is told: WatchClosed. It is opened anew if it is used again."""
        if self._watching is not None:
            self._watching.close()
        with self._lock:
            if self._database is not None:
                self._database.close()
            if self._storage is not None:
                self._storage.close()
            self._database = self._storage = None

    async def close_async(self) -> None:
        """The same, for those who watch in the running loop."""
        if self._async_watching is not None:
            await self._async_watching.close()
        self.close()
