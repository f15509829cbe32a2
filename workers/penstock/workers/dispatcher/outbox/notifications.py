"""Notifications from PostgreSQL that something was committed to an outbox, so that no job waits for the next round."""

from __future__ import annotations

import threading
from typing import Any

from sqlalchemy import Connection, NullPool
from sqlalchemy.exc import DBAPIError

from penstock.config.errors import LedgerUnavailable
from penstock.config.settings import redact_url
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.engine import make_engine
from penstock.ledger.sql.tables import OUTBOX_CHANNEL
from penstock.ledger.sql.urls import is_behind_pooler
from penstock.workers.dispatcher.poller import Poller

_LISTEN_SECONDS = 0.5


class Notifications(Poller):
    """Listens on a connection of its own, and sets `wakeup`. Polling finds what is missed while it is down.

    Arguments:
        database: one for which `possible` is true.
        direct_url: the same database without a pooler in between; None: the pool's own connections are direct.
    """

    interval_seconds = 0.0  # listening waits
    essential = False  # polling goes on

    def __init__(self, database: Database, wakeup: threading.Event, direct_url: str | None = None) -> None:
        self.name = f"outbox's notifications from {redact_url(database.url)}"
        super().__init__()
        self._wakeup, self._url = wakeup, direct_url or database.url
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
                self._wakeup.set()
            for _ in self._connection.notifies(timeout=_LISTEN_SECONDS):
                self._wakeup.set()
        except (psycopg.Error, DBAPIError) as error:
            self.close()
            where = redact_url(self._url)
            raise LedgerUnavailable(f"{where} is not available: {str(error).strip().splitlines()[0]}") from error
        return True

    def _listen(self) -> Any:
        self._owner = self._engine.connect()
        own: Any = self._owner.connection.driver_connection
        self._owner.detach()  # the pool would count it
        own.autocommit = True
        own.execute(f"LISTEN {OUTBOX_CHANNEL}")
        return own

    def close(self) -> None:
        owner, self._owner, self._connection = self._owner, None, None
        if owner is not None:
            owner.close()
