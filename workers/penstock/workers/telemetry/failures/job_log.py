"""The log of jobs: a line for each failure, few for a flood of alike ones, and on request a line for each job."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace

from penstock.config.log_fields import of_trace
from penstock.config.printable import printable
from penstock.ledger.transitions.claim import Claim
from penstock.ledger.transitions.outcome import AttemptOutcome
from penstock.schemas.states import Outcome
from penstock.workers.executor.runtime.observers import Observer
from penstock.workers.telemetry.failures.failure import Failure

log = logging.getLogger("penstock.jobs")

IN_FULL = 10
"""Failures of one fingerprint that each have a line within a window; further ones are counted."""
WINDOW_SECONDS = 10.0
_MOST_GROUPS = 1000
_SUCCEEDED = Outcome.SUCCEEDED  # a member is found faster here than in its class
_FAILURES = frozenset({Outcome.RETRY, Outcome.DEAD, Outcome.CRASHED})


class _Flood:
    """Failures that are alike, within one window."""

    __slots__ = ("began", "count", "last", "shown")

    def __init__(self, began: float) -> None:
        self.began, self.shown, self.count = began, 0, 0
        self.last: Failure | None = None


class FailureLog:
    """Writes failures to the log: of those with one kind and fingerprint, ten within ten seconds in full, and then a
    line every ten seconds with their number. Not safe for several threads.

    Arguments:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._floods: OrderedDict[tuple[str | None, str, bool], _Flood] = OrderedDict()

    def write(self, failure: Failure) -> None:
        """Write it, or count it."""
        now, key = self._clock(), (failure.kind, failure.fingerprint, failure.is_dead)
        flood = self._floods.get(key)
        if flood is None:
            flood = self._floods[key] = _Flood(now)
            if len(self._floods) > _MOST_GROUPS:
                self._report(self._floods.popitem(last=False)[1], now)
        if flood.shown < IN_FULL:
            flood.shown += 1
            log_failure(failure)
        else:
            # Without its exception, whose frames hold what the handler had in hand.
            flood.count, flood.last = flood.count + 1, replace(failure, exception=None)
        self._floods.move_to_end(key)

    def flush(self, *, all: bool = False) -> None:
        """Write the numbers of windows that have ended; `all`: of those that have not, too."""
        now = self._clock()
        for key, flood in list(self._floods.items()):
            if not all and now - flood.began < WINDOW_SECONDS:
                continue
            if flood.count:
                self._report(flood, now)
                flood.began, flood.count = now, 0  # and none in full until it has ended
            else:
                del self._floods[key]

    @staticmethod
    def _report(flood: _Flood, now: float) -> None:
        if (failure := flood.last) is None or not flood.count:
            return
        number, seconds = flood.count, max(now - flood.began, 0.1)
        what = "are dead letters" if failure.is_dead else "failed"
        fields = {name: getattr(failure, name) for name in ("kind", "queue", "worker") if getattr(failure, name)}
        log.log(
            _level(failure),
            "%s more jobs of kind %s %s alike in %.0f s, the last of them job %s: %s",
            f"{number:,}",
            failure.kind,
            what,
            seconds,
            failure.job_id,
            failure.error,
            extra=fields | {"outcome": failure.outcome, "fingerprint": failure.fingerprint, "alike": number},
        )


def log_failure(failure: Failure) -> None:
    """Write one failure to the log: WARNING, or ERROR for a death."""
    level = _level(failure)
    if not log.isEnabledFor(level):
        return
    text = f"job {failure.job_id} ({failure.kind or 'of an unknown kind'})"
    if failure.is_dead:
        text += f" is a dead letter: {failure.reason}: {failure.error}"
    else:
        of = "" if failure.max_attempts is None else f" of {failure.max_attempts}"
        then = "" if failure.next_attempt_at is None else f", next at {failure.next_attempt_at:%Y-%m-%d %H:%M:%S} UTC"
        how = "crashed in" if failure.outcome == "crashed" else "failed in"
        text += f" {how} attempt {failure.attempt}{of}{then}: {failure.error}"
    record = log.makeRecord(log.name, level, __file__, 0, printable(text), (), None, "log_failure", failure.log_fields)
    record.exc_text = None if failure.traceback is None else failure.traceback.rstrip("\n")
    log.handle(record)


def _level(failure: Failure) -> int:
    return logging.ERROR if failure.is_dead else logging.WARNING


class JobLog(Observer):
    """An `Observer` that writes a line at INFO when a job starts, and when an attempt has ended without a failure."""

    def __init__(self, worker: str) -> None:
        self._worker = worker

    def started(self, claim: Claim) -> None:
        message = claim.message
        log.info("job %s (%s) starts", message.id, message.kind.name, extra=self._fields(claim))

    def ended(self, outcome: AttemptOutcome) -> None:
        if is_failure(outcome):
            return  # it has a line of its own
        claim = outcome.claim
        seconds = round((outcome.finished_at - claim.started_at).total_seconds(), 6)
        fields = self._fields(claim) | {"outcome": str(outcome.name), "seconds": seconds}
        why = f": {outcome.error}" if outcome.error else ""
        message = claim.message
        log.info("job %s (%s): %s%s", message.id, message.kind.name, outcome.name, why, extra=fields)

    def _fields(self, claim: Claim) -> dict[str, object]:
        message = claim.message
        fields: dict[str, object] = {
            "job_id": message.id,
            "kind": message.kind.name,
            "queue": message.queue,
            "tenant": message.tenant,
        }
        fields |= {"attempt": claim.attempt, "worker": self._worker, **of_trace(message.traceparent)}
        return {name: value for name, value in fields.items() if value is not None}


def is_failure(outcome: AttemptOutcome) -> bool:
    """Whether an attempt failed, crashed, or ended with the death of its job."""
    return outcome.name is not _SUCCEEDED and outcome.name in _FAILURES
