"""`Failure`: a failed attempt, or a death, as it is reported to logs, to Sentry and to `@on_failure`."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from penstock.config.log_fields import of_trace
from penstock.ledger.queries.deaths import Death
from penstock.ledger.rows.dead_letters import group_of
from penstock.ledger.transitions.claim import Claim
from penstock.ledger.transitions.outcome import AttemptOutcome
from penstock.schemas.jobs.adopted import AdoptedJob
from penstock.schemas.jobs.kind import Kind
from penstock.schemas.states import State


@dataclass(frozen=True, slots=True)
class Failure:
    """A failed attempt that is on record. Values of the job's `Sensitive` fields are `***` in its texts.

    Attributes:
        job_id: for a message that could not be read, the id of its dead letter, if it has none itself.
        kind: None: not even that could be read.
        attempt: number of the attempt, from 1; 0: the job never ran.
        max_attempts: failed attempts after which it is dead; None where its kind is not known, or another framework
            decides.
        outcome: `retry`, `crashed` (its process died; it runs again) or `dead`.
        reason: why it is dead, as its dead letter has it: `failed`, `crashed`, `undecodable` and so on; else None.
        error: `Type: message`, and for a death also why it is the end.
        traceback: as Python prints it; None: nothing was raised, or it was raised in a process that died.
        exception: what the handler raised; None also where it ran in a process of its own. Its text and the values in
            its frames are as they were: sensitive ones, too.
        fingerprint: the same as for dead letters: equal where the cause is the same.
        next_attempt_at: aware; None: there is none.
        worker, engine: who ran it; None for a death that a dispatcher has recorded.
    """

    job_id: str
    kind: str | None
    queue: str
    tenant: str | None
    attempt: int
    max_attempts: int | None
    outcome: str
    reason: str | None
    error: str
    traceback: str | None = field(repr=False)
    exception: BaseException | None = field(repr=False)
    fingerprint: str
    next_attempt_at: datetime | None
    worker: str | None
    engine: str | None
    traceparent: str | None = field(default=None, repr=False)

    @property
    def is_dead(self) -> bool:
        """Whether it is a dead letter now."""
        return self.outcome == "dead"

    @property
    def log_fields(self) -> dict[str, Any]:
        """The fields of its line in the log, without those that are None."""
        names = ("job_id", "kind", "queue", "tenant", "attempt", "max_attempts", "worker", "outcome", "fingerprint")
        fields = {name: value for name in names if (value := getattr(self, name)) is not None}
        if self.next_attempt_at is not None:
            fields["next_attempt_at"] = self.next_attempt_at.isoformat(timespec="milliseconds")
        return fields | of_trace(self.traceparent)


def failure_of(
    outcome: AttemptOutcome, exception: BaseException | None, *, worker: str | None, engine: str | None
) -> Failure:
    """The failure of a recorded outcome. Some 100 µs for the fingerprint: not on the loop of the jobs.

    Arguments:
        exception: `outcome.exception`, which the recorder drops.
    """
    claim, is_dead = outcome.claim, outcome.state == State.DEAD
    reason = "crashed" if outcome.crashed else outcome.reason or "failed"
    error = outcome.error or outcome.detail or ""
    kind = claim.message.kind
    return Failure(
        **_job(claim),
        max_attempts=_max_attempts(kind),
        outcome="dead" if is_dead else "crashed" if outcome.crashed else "retry",
        reason=reason if is_dead else None,
        error=(outcome.detail or error) if is_dead else error,
        traceback=outcome.traceback,
        exception=exception,
        fingerprint=group_of(kind.name, reason, error, outcome.traceback),
        next_attempt_at=None if is_dead else outcome.due_at,
        worker=worker,
        engine=engine,
    )


def crash_of(claim: Claim, *, worker: str | None, engine: str | None) -> Failure:
    """The failure of the attempt before this claim, which ended with its worker."""
    assert claim.crash is not None
    return Failure(
        **_job(claim),
        max_attempts=_max_attempts(claim.message.kind),
        outcome="crashed",
        reason=None,
        error=claim.crash,
        traceback=None,
        exception=None,
        fingerprint=group_of(claim.message.kind.name, "crashed", claim.crash, None),
        next_attempt_at=claim.started_at,
        worker=worker,
        engine=engine,
    )


def failure_of_death(death: Death) -> Failure:
    """The failure of a job that died without an attempt of this process."""
    return Failure(
        job_id=death.id,
        kind=death.kind,
        queue=death.queue,
        tenant=death.tenant,
        attempt=death.attempt,
        max_attempts=None,
        outcome="dead",
        reason=death.reason,
        error=death.detail,
        traceback=None,
        exception=None,
        fingerprint=death.fingerprint,
        next_attempt_at=None,
        worker=None,
        engine=None,
        traceparent=death.traceparent,
    )


def _max_attempts(kind: Kind) -> int | None:
    return None if issubclass(kind.job, AdoptedJob) else kind.retry.max_attempts


def _job(claim: Claim) -> dict[str, Any]:
    message = claim.message
    return {
        "job_id": message.id,
        "kind": message.kind.name,
        "queue": message.queue,
        "tenant": message.tenant,
        "attempt": claim.attempt,
        "traceparent": message.traceparent,
    }
