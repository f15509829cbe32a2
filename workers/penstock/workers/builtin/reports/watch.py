"""Cancelling the statement of a connection from another thread: when its job must stop, or when its time is up."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from sqlalchemy import URL, Connection, create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from penstock.workers.handlers.context import Context

log = logging.getLogger(__name__)

_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 5.0
"""Seconds between two tries to cancel: a try between two statements has no effect."""
_CANCEL_SECONDS = 10.0


class Watch:
    """Cancels what a connection runs. The thread waits, without looking, until there is a reason.

    Attributes:
        late: the time was up.
        fired: the database was asked to cancel; the connection should not be used again.
    """

    def __init__(self, cancel: Callable[[], None], seconds: float | None) -> None:
        self.late = self.fired = False
        self._cancel, self._seconds = cancel, seconds
        self._wake, self._ended = threading.Event(), threading.Event()
        self._lock = threading.Lock()  # held while a cancel is under way: the connection is not another job's before
        self._thread = threading.Thread(target=self._run, name="penstock-report-watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Have the statement cancelled. Safe in a signal handler."""
        self._wake.set()

    def end(self) -> None:
        """Cancel nothing from now on."""
        with self._lock:
            self._ended.set()
        self._wake.set()

    def cancel(self) -> None:
        """Cancel the statement now, unless the watch has ended. An error is logged: the server may be down."""
        with self._lock:
            if self._ended.is_set():
                return
            self.fired = True
            try:
                self._cancel()
            except Exception as error:
                log.warning("the query of a report cannot be cancelled: %s: %s", type(error).__name__, error)

    def _run(self) -> None:
        self.late = not self._wake.wait(self._seconds)
        pause = _FIRST_PAUSE
        while not self._ended.is_set():
            self.cancel()
            self._ended.wait(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)


@contextmanager
def watched(connection: Connection, ctx: Context, seconds: float | None) -> Iterator[Watch]:
    """Watch over what a connection runs in the block.

    Arguments:
        seconds: the longest time for all of it; None: as long as the job may run.
    """
    watch = Watch(_cancel_of(connection), seconds)
    watch.start()
    try:
        with ctx.when_cancelled(watch.stop):
            yield watch
    except BaseException as error:
        if not watch.fired and not isinstance(error.__cause__, DBAPIError):
            watch.cancel()  # else the server would go on, until it notices that no one listens
        raise
    finally:
        watch.end()


def _cancel_of(connection: Connection) -> Callable[[], None]:
    """A function that cancels what the connection runs: PostgreSQL's cancel request, `KILL QUERY`, or SQLite's
    interrupt. On other databases it does nothing, and a report ends between two batches of rows."""
    driver: Any = connection.connection.driver_connection
    match connection.dialect.name:
        case "postgresql" if hasattr(driver, "cancel_safe"):
            return partial(driver.cancel_safe, timeout=_CANCEL_SECONDS)
        case "postgresql" if hasattr(driver, "cancel"):
            return driver.cancel  # type: ignore[no-any-return]
        case "mysql" | "mariadb":
            number = int(connection.exec_driver_sql("SELECT CONNECTION_ID()").scalar_one())
            return partial(_kill_query, connection.engine.url, number)
        case "sqlite":
            return driver.interrupt  # type: ignore[no-any-return]
        case _:
            return lambda: None


def _kill_query(url: URL, number: int) -> None:
    # A connection of its own: the pool may have none left.
    engine = create_engine(url, poolclass=NullPool)
    with engine.connect() as connection:
        connection.exec_driver_sql(f"KILL QUERY {number}")
