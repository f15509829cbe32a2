"""Jobs as a test sees them: those that wait, and the attempts that `drain` has run."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from penstock.schemas.jobs.job import Job
from penstock.schemas.jobs.kind import Priority, registry
from penstock.schemas.states import WAITING, Outcome, State
from penstock.schemas.wire.codec import Envelope, decode


@dataclass(frozen=True, slots=True)
class Enqueued:
    """Waiting job, with the options it was enqueued with. Times are those of the test's clock.

    Attributes:
        job: as its worker would get it.
        run_at: when it is due, if that is later: for a delay, a retry or a snooze.
        state: `queued`, `scheduled` or `retrying`.
    """

    job: Job
    id: str
    kind: str
    queue: str
    priority: Priority
    key: str | None
    tenant: str | None
    enqueued_at: datetime
    run_at: datetime | None
    expires_at: datetime | None
    traceparent: str | None
    state: State

    @property
    def delay(self) -> timedelta:
        """From its enqueueing until it is due."""
        return timedelta(0) if self.run_at is None else self.run_at - self.enqueued_at

    @classmethod
    def of_envelope(cls, envelope: Envelope) -> Enqueued:
        message = decode(envelope)
        assert message.sent_at is not None
        return cls(
            job=message.job,
            id=message.id,
            kind=message.kind.name,
            queue=message.queue,
            priority=message.priority,
            key=message.key,
            tenant=message.tenant,
            enqueued_at=message.sent_at,
            run_at=message.due_at,
            expires_at=message.expires_at,
            traceparent=message.traceparent,
            state=State.QUEUED if message.due_at is None else State.SCHEDULED,
        )

    @classmethod
    def of_row(cls, row: Any, ahead: timedelta) -> Enqueued:
        """Row of the ledger → job. The row's times are behind the test's clock by `ahead`."""
        return cls(
            job=registry[row.kind].job.model_validate_json(row.payload),
            id=row.id,
            kind=row.kind,
            queue=row.queue,
            priority=row.priority,
            key=row.key,
            tenant=row.tenant,
            enqueued_at=row.enqueued_at + ahead,
            run_at=row.due_at + ahead if row.state in WAITING and row.due_at is not None else None,
            expires_at=None if row.expires_at is None else row.expires_at + ahead,
            traceparent=row.traceparent,
            state=State(row.state),
        )

    def __str__(self) -> str:
        """The job, its sensitive fields hidden, and the options that differ from its kind's."""
        kind = self.job.kind()
        options: dict[str, object] = {}
        if self.state == State.RETRYING:
            options["state"] = self.state
        if self.run_at is not None:
            options["delay"] = str(self.delay)
        if self.priority != kind.priority:
            options["priority"] = self.priority
        if self.queue != kind.queue:
            options["queue"] = self.queue
        options |= {name: value for name in ("key", "tenant") if (value := getattr(self, name)) is not None}
        if kind.unique_by and kind.sensitive.intersection(kind.unique_by):
            options.pop("key", None)
        return "  ".join([repr(self.job), *(f"{name}={value}" for name, value in options.items())])


@dataclass(frozen=True, slots=True)
class Ran:
    """Attempt that `drain` has run.

    Attributes:
        outcome: `succeeded`, `retry`, `snoozed`, `discarded`, `cancelled` or `dead`.
        attempt: its number, from 1.
        result: what the handler returned, as JSON values.
        error: why it failed or was given up, in a line.
    """

    job: Job
    id: str
    outcome: Outcome
    attempt: int = 1
    result: Any = None
    error: str | None = None

    def __str__(self) -> str:
        return f"{self.job!r}  {self.outcome}"
