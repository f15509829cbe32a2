"""Reports of failures: to the log, to Sentry and to the application's hooks, from a thread of their own.

An outcome is reported once it is on record, and by the process that has recorded it. So each failed attempt and each
death is reported once, and an outcome whose fence was lost is not reported.
"""

from __future__ import annotations

import logging
import queue
import sys
import threading
import time
from collections.abc import Callable

from penstock.config.settings import Settings
from penstock.config.supervision import faults, start_thread
from penstock.ledger.queries.deaths import Death
from penstock.ledger.transitions.claim import Claim
from penstock.ledger.transitions.outcome import AttemptOutcome
from penstock.workers.executor.runtime.observers import Observer
from penstock.workers.telemetry.failures.failure import Failure, crash_of, failure_of, failure_of_death
from penstock.workers.telemetry.failures.hooks import FailureHooks
from penstock.workers.telemetry.failures.job_log import FailureLog, is_failure
from penstock.workers.telemetry.failures.sentry import Sentry

log = logging.getLogger("penstock.failures")

MOST_WAITING = 10_000
"""Failures that wait to be reported; further ones are only counted."""
_MOST_EXCEPTIONS = 200
"""Of those, how many keep their exceptions, whose frames hold what their handlers had in hand."""
_LOOK_SECONDS = 0.5
CLOSE_SECONDS = 2.0


class FailureReports(Observer):
    """An `Observer` that reports failures. Its thread is started with the first one.

    Arguments:
        worker, engine: who runs the jobs; None for a dispatcher.
    """

    def __init__(self, settings: Settings, *, worker: str | None = None, engine: str | None = None) -> None:
        self._worker, self._engine = worker, engine
        self._log, self._hooks, self._sentry = FailureLog(), FailureHooks(), Sentry(settings)
        self._waiting: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._dropped = 0
        self._stopping = threading.Event()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None

    # As an observer, on the loop of the jobs.

    def started(self, claim: Claim) -> None:
        if "sentry_sdk" in sys.modules:
            self._sentry.started(claim)
        if claim.crash is not None:
            self._add(lambda: self._report(crash_of(claim, worker=self._worker, engine=self._engine), claim, None))

    def ended(self, outcome: AttemptOutcome) -> None:
        scope = self._sentry.ended(outcome.claim) if "sentry_sdk" in sys.modules else None
        if not is_failure(outcome):
            return
        exception = outcome.exception if self._waiting.qsize() < _MOST_EXCEPTIONS else None

        def report() -> None:
            failure = failure_of(outcome, exception, worker=self._worker, engine=self._engine)
            self._report(failure, outcome.claim, scope)

        self._add(report)

    def buried(self, death: Death) -> None:
        """Report a job that died without an attempt. Safe from any thread."""
        self._add(lambda: self._report(failure_of_death(death), None, None))

    def close(self) -> None:
        """Report what waits, within some seconds."""
        self._stopping.set()
        if self._thread is not None:
            self._waiting.put(lambda: None)  # wakes it
            self._thread.join(CLOSE_SECONDS)
            self._hooks.close(CLOSE_SECONDS)
        self._sentry.close()

    # In its thread.

    def _add(self, report: Callable[[], None]) -> None:
        if self._waiting.qsize() >= MOST_WAITING:
            faults["failure reports too slow"] += 1
            self._dropped += 1
            return
        self._waiting.put(report)
        if self._thread is None:
            with self._starting:
                if self._thread is None:
                    self._thread = start_thread("failure reports", self._run, self._stopping, vital=False)

    def _run(self) -> None:
        flush_at = time.monotonic() + _LOOK_SECONDS
        while True:
            report: Callable[[], None] | None = None
            try:
                report = self._waiting.get(timeout=_LOOK_SECONDS if not self._stopping.is_set() else 0)
                report()
            except queue.Empty:
                if self._stopping.is_set():
                    break
            del report  # it holds an exception with its frames
            if time.monotonic() >= flush_at:
                flush_at = time.monotonic() + _LOOK_SECONDS
                self._flush()
        self._flush(all=True)

    def _flush(self, *, all: bool = False) -> None:
        self._log.flush(all=all)
        if dropped := self._dropped:
            self._dropped -= dropped
            log.error("%d failures were not reported one by one: there were too many at a time", dropped)

    def _write(self, failure: Failure) -> None:
        self._sentry.prepare()  # before the line
        self._log.write(failure)

    def _report(self, failure: Failure, claim: Claim | None, scope: object) -> None:
        reporters: dict[str, Callable[[], None]] = {
            "log": lambda: self._write(failure),
            "Sentry": lambda: self._sentry.report(failure, claim, scope),
            "hooks": lambda: self._hooks.add(failure),
        }
        for name, report in reporters.items():
            try:
                report()
            except Exception as error:
                faults["failure not reported"] += 1
                # Without the traceback: the error may be about the job's own values.
                log.error("job %s: its failure did not reach %s: %s", failure.job_id, name, type(error).__name__)
