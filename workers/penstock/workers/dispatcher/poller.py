"""The base of a dispatcher's services: a thread, a pause between rounds, a back-off during an outage. And the service
that looks for work for the others."""

from __future__ import annotations

import logging
import random
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence

import sqlalchemy as sa

from penstock.config.errors import BrokerRefused, BrokerUnavailable, LedgerUnavailable, PenstockError
from penstock.config.supervision import faults, start_thread, without_url
from penstock.ledger.queries.deaths import deaths_of
from penstock.ledger.sql.database import Database
from penstock.workers.telemetry.failures.failure import failure_of_death
from penstock.workers.telemetry.failures.job_log import log_failure
from penstock.workers.telemetry.failures.reports import FailureReports

log = logging.getLogger("penstock.dispatcher")

LONGEST_BACK_OFF_SECONDS = 5.0
_LOOK_SECONDS = 0.05
"""Pause between two looks of a lookout, unless a service wants shorter ones."""
_WATCHED_SECONDS = 5.0
"""Pause between two rounds without work of a service that a lookout wakes."""


class Poller(ABC):
    """A service that calls `run_once` again and again until it is stopped.

    An outage of the broker or the database is logged once when it begins and once when it ends. Other errors are logged
    each time, and end the dispatcher if they do not cease (`supervision`).
    """

    name: str
    interval_seconds: float = 0.1
    """The pause after a round without work."""
    look_seconds: float = 1.0
    """The pause of a lookout that it can do with."""
    longest_round_seconds: float = 60.0
    """A round that takes longer makes no progress. Calls of broker and database have time limits far below this."""
    essential: bool = True
    """Whether the dispatcher is not ready while this cannot reach its server."""
    source: str | None = None
    """Where the jobs that it sends come from, as a label of metrics; None: it sends none."""

    reports: FailureReports | None = None
    """Of the dispatcher, for deaths that the service records; None: they are only logged."""

    def __init__(self) -> None:
        self.stopping = threading.Event()
        self.wakeup = threading.Event()
        """Set where there is something to do: it ends the pause."""
        self.woken = False
        """Whether it ended the last pause."""
        self.sent = 0
        """Jobs that it has sent."""
        self._thread: threading.Thread | None = None
        self._failing: str | None = None
        self._missing: str | None = None
        self._round_began: float | None = None

    def work(self) -> sa.ColumnElement[bool] | None:
        """Whether a round has something to do, as an expression over the ledger; None: only a round can tell."""
        return None

    def be_watched(self, interval_seconds: float) -> None:
        """Pause longer between rounds without work: a lookout sets `wakeup` when there is some."""
        self.interval_seconds = interval_seconds

    @abstractmethod
    def run_once(self) -> bool:
        """Run one round. Returns whether the next round must follow at once, because there is more to do."""

    def close(self) -> None:  # noqa: B027  # most have nothing to close
        """Close connections; called in the service's thread when it ends."""

    def wake(self) -> None:  # noqa: B027  # most wait only between rounds
        """Make a round that waits inside `run_once` return early."""

    def report_deaths(self, database: Database, ids: Sequence[str]) -> None:
        """Report dead letters that are on record now. Never raises."""
        try:
            deaths = deaths_of(database, ids)
        except PenstockError as error:
            log.error("new dead letters: %s; they cannot be read: %s", ", ".join(ids), error)
            return
        for death in deaths:
            if self.reports is None:
                log_failure(failure_of_death(death))
            else:
                self.reports.buried(death)

    def start(self) -> None:
        self._thread = start_thread(self.name, self._run, self.stopping)

    def stop(self) -> None:
        """Ask the service to end after this round."""
        self.stopping.set()
        self.wakeup.set()
        self.wake()

    def join(self, timeout_seconds: float) -> bool:
        """Wait for the end of the service. Returns False where it still runs."""
        if self._thread is None:
            return True
        self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    def not_live(self) -> str | None:
        """Why it makes no progress; None: it does, or has been stopped. Safe from any thread."""
        if self._thread is None or self.stopping.is_set():
            return None
        name = without_url(self.name)
        if not self._thread.is_alive():
            return f"{name} has ended"
        began = self._round_began
        seconds = 0.0 if began is None else time.monotonic() - began
        return f"{name}: one round takes {seconds:.0f} s" if seconds > self.longest_round_seconds else None

    def not_ready(self) -> str | None:
        """Which server does not answer; None: they do."""
        return f"the {self._missing} does not answer" if self.essential and self._missing is not None else None

    def _run(self) -> None:
        back_off = 0.0
        while not self.stopping.is_set():
            self._round_began = time.monotonic()
            try:
                busy = self.run_once()
            except PenstockError as error:
                self._round_began = None
                self._report(error)
                back_off = min(max(back_off * 2, 0.1), LONGEST_BACK_OFF_SECONDS)
                self.stopping.wait(back_off * random.uniform(0.5, 1.0))
                continue
            if self._failing is not None:
                log.warning("%s: works again", self.name)
            self._failing, self._missing, self._round_began, back_off = None, None, None, 0.0
            if not busy:
                self.woken = self.wakeup.wait(self.interval_seconds)
                self.wakeup.clear()
        try:
            self.close()
        except PenstockError as error:
            log.warning("%s: %s", self.name, error)

    def _report(self, error: PenstockError) -> None:
        kind = type(error).__name__
        if self._failing == kind:
            return
        self._failing = kind
        if isinstance(error, BrokerUnavailable | LedgerUnavailable):
            self._missing = "broker" if isinstance(error, BrokerUnavailable) else "ledger"
            faults[_fault(error)] += 1
            log.error("%s: %s; it goes on when that is back", self.name, error)
        else:
            log.error("%s: %s: %s; trying again", self.name, kind, error, exc_info=error)


class Lookout(Poller):
    """Asks the ledger in one statement which of its services have something to do, and wakes those.

    Arguments:
        services: of which some say when they have work, all in this ledger.
    """

    name = "lookout"

    def __init__(self, database: Database, services: Sequence[Poller]) -> None:
        super().__init__()
        watched = [(service, work) for service in services if (work := service.work()) is not None]
        self._services = [service for service, _ in watched]
        self._pauses = [service.interval_seconds for service in self._services]
        self._next = [0.0 for _ in watched]
        self.interval_seconds = min(_LOOK_SECONDS, *(service.look_seconds for service in self._services))
        self._look = database.repeated(sa.select(*(work.label(f"n{n}") for n, (_, work) in enumerate(watched))))
        for service in self._services:
            service.be_watched(_WATCHED_SECONDS)

    def run_once(self) -> bool:
        now = time.monotonic()
        for number, has_work in enumerate(self._look.values()):
            if has_work and now >= self._next[number]:
                self._next[number] = now + self._pauses[number]  # it may be work that only another dispatcher can do
                self._services[number].wakeup.set()
        return False

    def close(self) -> None:
        self._look.close()


def _fault(error: BrokerUnavailable | LedgerUnavailable) -> str:
    if isinstance(error, BrokerRefused):
        return "broker refuses writes"
    return "broker unavailable" if isinstance(error, BrokerUnavailable) else "ledger unavailable"
