"""Notifications from PostgreSQL that something was committed that a process would else have to ask for all the time: to
an outbox, or about its members."""

from __future__ import annotations

import logging
import threading
from typing import Any

from sqlalchemy import Connection, NullPool, event
from sqlalchemy.exc import DBAPIError

from penstock.config.errors import LedgerUnavailable
from penstock.config.settings import redact_url
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.engine import make_engine
from penstock.ledger.sql.tables import OUTBOX_CHANNEL
from penstock.ledger.sql.urls import is_behind_pooler
from penstock.workers.brokers.wakeup import Wakeup, readable
from penstock.workers.dispatcher.poller import Poller

log = logging.getLogger("penstock.ledger")

_LISTEN_SECONDS = 30.0
"""A round; its end asks nothing of the server."""


class Notifications(Poller):
    """Listens on a connection of its own, and sets `wakeup`. Polling finds what is missed while it is down.

    Arguments:
        database: one for which `possible` is true.
        direct_url: the same database without a pooler in between; None: the pool's own connections are direct.
        channel: to listen to; `about` is its name for people.

    Attributes:
        listens: whether `wakeup` is set for all that is committed from now on.
    """

    interval_seconds = 0.0  # listening waits
    essential = False  # polling goes on

    def __init__(
        self,
        database: Database,
        wakeup: threading.Event,
        direct_url: str | None = None,
        *,
        channel: str = OUTBOX_CHANNEL,
        about: str = "outbox's notifications",
    ) -> None:
        self.name = f"{about} from {redact_url(database.url)}"
        super().__init__()
        self.listens = False
        self._wakeup, self._url, self._channel = wakeup, direct_url or database.url, channel
        self._ended = Wakeup()
        self._engine = database.engine if direct_url is None else make_engine(direct_url, poolclass=NullPool)
        self._owner: Connection | None = None
        self._connection: Any = None

    @staticmethod
    def possible(database: Database, direct_url: str | None = None) -> bool:
        if database.dialect != "postgresql" or database.engine.driver != "psycopg":
            return False
        return direct_url is not None or not is_behind_pooler(database.url)  # a pooler forgets who listens

    def run_once(self) -> bool:
        import psycopg

        try:
            if self._connection is None:
                self._connection = self._listen()
                self.listens = True
                self._wakeup.set()  # for what was committed before
            self._ended.wait([self._connection], _LISTEN_SECONDS)
            for _ in self._connection.notifies(timeout=0):
                self._wakeup.set()
        except (psycopg.Error, DBAPIError) as error:
            self._disconnect()
            where = redact_url(self._url)
            raise LedgerUnavailable(f"{where} is not available: {str(error).strip().splitlines()[0]}") from error
        return True

    def _listen(self) -> Any:
        self._owner = self._engine.connect()
        own: Any = self._owner.connection.driver_connection
        self._owner.detach()  # the pool would count it
        own.autocommit = True
        own.execute(f"LISTEN {self._channel}")
        return own

    def wake(self) -> None:
        self._ended.set()

    def close(self) -> None:
        self._disconnect()
        self._ended.close()

    def _disconnect(self) -> None:
        self.listens = False
        owner, self._owner, self._connection = self._owner, None, None
        if owner is not None:
            owner.close()


class SharedNotifications:
    """Listens on the ledger's own connections, so that a worker needs none for that alone.

    Each statement reads what the server has sent in between, and sets `wakeup`. Between statements no one reads:
    `is_quiet` says whether something has come.

    Arguments:
        database: one for which `Notifications.possible` is true, and which has no connection yet.
    """

    def __init__(self, database: Database, wakeup: threading.Event, channel: str) -> None:
        self._wakeup, self._channel = wakeup, channel
        self._idle: Any = None
        event.listen(database.engine, "connect", self._on_connect)
        event.listen(database.engine, "checkin", self._on_checkin)

    def is_quiet(self) -> bool:
        """Whether `wakeup` is set for all that was committed before. From any thread."""
        import psycopg

        try:
            return self._idle is not None and not readable(self._idle)
        except psycopg.OperationalError:  # it is closed
            return False

    def _on_connect(self, connection: Any, record: Any) -> None:
        import psycopg

        try:
            connection.execute(f"LISTEN {self._channel}")
        except psycopg.Error as error:  # what this connection is for may still work
            log.info("orders are polled for: %s", error)
            return
        connection.add_notify_handler(lambda _: self._wakeup.set())
        record.info["listens"] = True
        self._wakeup.set()  # for what was committed before

    def _on_checkin(self, connection: Any, record: Any) -> None:
        if connection is None or "listens" not in record.info:  # it was invalidated, or cannot listen
            return
        while connection.pgconn.notifies():  # came with the last answer, and so is not to be read any more
            self._wakeup.set()
        self._idle = connection
