"""Match enqueued jobs against an assertion, and build its message where they are missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from penstock.config.suggestions import did_you_mean
from penstock.producers.enqueue.options import OPTION_NAMES, check_options
from penstock.producers.testing.jobs import Enqueued, Ran
from penstock.schemas.jobs.durations import Duration, checked_duration, checked_time
from penstock.schemas.jobs.job import Job

RunAt = datetime | tuple[datetime, datetime]
"""An aware time, or the earliest and the latest one."""

TOLERANCE = timedelta(seconds=1)
"""How far a time may be from the one that is named: an app that computes a time itself asks the clock once more."""
_LISTED = 20


class JobMatcher:
    """Filter that an assertion asks for.

    Arguments:
        job: a class, which includes its subclasses; or a job, which must be equal.
        values: of fields.

    Raises:
        TypeError, ValueError: no job can be like that.
    """

    def __init__(
        self,
        job: type[Job] | Job | None,
        values: Mapping[str, Any],
        *,
        delay: Duration | None = None,
        run_at: RunAt | None = None,
        **options: Any,
    ) -> None:
        self._job = job
        self._class = job if isinstance(job, type) else None if job is None else type(job)
        self._values = dict(values)
        self._delay = checked_duration("delay", delay)
        self._run_at = None if run_at is None else _window(run_at)
        self._options = check_options(options)
        self._check()

    def _check(self) -> None:
        if self._class is None:
            return
        if not issubclass(self._class, Job):
            raise TypeError(f"name the class of a job, or a job; {self._class.__name__} is not a Job")
        if isinstance(self._job, Job) and self._values:
            raise TypeError("give a job, or its class and values of fields, not both")
        if unknown := [name for name in self._values if name not in self._class.model_fields]:
            # As an assertion that nothing is enqueued, a misspelt name would hold for ever.
            fields = ", ".join(self._class.model_fields) or "none"
            hint = did_you_mean(unknown[0], [*self._class.model_fields, *OPTION_NAMES])
            raise TypeError(f"{self._class.__name__} has no field {', '.join(unknown)}; its fields are {fields}{hint}")

    def matches(self, enqueued: Enqueued) -> bool:
        if isinstance(self._job, Job):
            if enqueued.job != self._job:
                return False
        elif self._class is not None and not isinstance(enqueued.job, self._class):
            return False
        if any(getattr(enqueued.job, name) != value for name, value in self._values.items()):
            return False
        if any(getattr(enqueued, name) != value for name, value in self._options.items()):
            return False
        if self._delay is not None and abs(enqueued.delay - self._delay) > TOLERANCE:
            return False
        if self._run_at is None:
            return True
        earliest, latest = self._run_at
        return earliest <= (enqueued.run_at or enqueued.enqueued_at) <= latest

    @property
    def kin(self) -> type[Job]:
        return self._class or Job

    def __str__(self) -> str:
        """Filter as the test wrote it, sensitive fields hidden."""
        criteria: dict[str, Any] = {}
        if self._class is not None and self._values:
            hidden = self._class.kind().sensitive if self._class.__kind__ is not None else frozenset[str]()
            criteria = {name: "***" if name in hidden else value for name, value in self._values.items()}
        if self._delay is not None:
            criteria["delay"] = str(self._delay)
        if self._run_at is not None:
            criteria["run_at"] = "from {} to {}".format(*(time.isoformat() for time in self._run_at))
        criteria |= self._options
        name = repr(self._job) if isinstance(self._job, Job) else self.kin.__name__
        options = ", ".join(f"{name}={value!r}" for name, value in criteria.items())
        return f"{name} with {options}" if options else name


def _window(run_at: RunAt) -> tuple[datetime, datetime]:
    single = isinstance(run_at, datetime)
    times: Any = (run_at, run_at) if single else run_at
    if not isinstance(times, tuple) or len(times) != 2:
        raise ValueError(f"run_at must be an aware datetime, or two: the earliest and the latest, not {run_at!r}")
    earliest, latest = (checked_time("run_at", time) for time in times)
    if single:
        return earliest - TOLERANCE, latest + TOLERANCE
    if earliest > latest:
        raise ValueError("run_at: give the earliest time first, then the latest")
    return earliest, latest


def describe(matcher: JobMatcher, waiting: Sequence[Enqueued], ran: Sequence[Ran]) -> str:
    """List the jobs that there are: those of the class first, then the others that wait, then those that have run."""
    kin = [enqueued for enqueued in waiting if isinstance(enqueued.job, matcher.kin)]
    others = [enqueued for enqueued in waiting if not isinstance(enqueued.job, matcher.kin)]
    lines = []
    if not waiting:
        lines.append("nothing is enqueued")
    for title, jobs in ((f"enqueued of {matcher.kin.__name__}", kin), ("enqueued of other kinds", others)):
        if jobs:
            lines += [f"{title}:", *(f"  {enqueued}" for enqueued in jobs[:_LISTED])]
        if len(jobs) > _LISTED:
            lines.append(f"  and {len(jobs) - _LISTED} more")
    if attempts := [attempt for attempt in ran if isinstance(attempt.job, matcher.kin)]:
        lines += ["drain() has run:", *(f"  {attempt}" for attempt in attempts[-_LISTED:])]
    return "\n".join(lines)
