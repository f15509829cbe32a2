"""From a job and the caller's wishes to an envelope: the pure part that both producers share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from penstock.config.errors import InvalidJob, UnknownQueue
from penstock.producers.traces import current_traceparent
from penstock.schemas.jobs.job import Job
from penstock.schemas.jobs.kind import PRIORITIES, Kind, Priority, registry
from penstock.schemas.jobs.unique_policy import Unique, UniquePolicy
from penstock.schemas.wire.codec import Envelope, encode

Duration = timedelta | float
"""A timedelta or seconds."""
OF_POLICIES = frozenset({"unique", "unique_for", "unique_states", "debounce"})
"""Those of the options of `Producer.enqueue` that `Preparation.policy` takes."""


@dataclass(frozen=True)
class Preparation:
    """Checks everything that can be checked before anything is sent.

    Attributes:
        max_bytes: the largest body.
        queues: those that penstock.toml lists; the ones that kinds name are known beside them.
    """

    max_bytes: int = 256 * 1024
    queues: frozenset[str] = field(default_factory=frozenset)

    def envelope(
        self,
        job: Job,
        *,
        delay: Duration | None = None,
        run_at: datetime | None = None,
        priority: Priority | None = None,
        key: str | None = None,
        tenant: str | None = None,
        expires_in: Duration | None = None,
        queue: str | None = None,
        id: str | None = None,
        traceparent: str | None = None,
        policy: Unique | None = None,
    ) -> Envelope:
        """Raises InvalidJob and its kinds; see `Producer.enqueue`."""
        kind = _kind(job)
        if priority is not None and priority not in PRIORITIES:
            raise InvalidJob(f"{kind.name}: priority {priority!r} must be one of {', '.join(PRIORITIES)}")
        if queue is not None and queue != kind.queue:
            self._check_queue(kind.name, queue)
        now = datetime.now(UTC)
        due_at = self._due_at(kind.name, now, delay, run_at)
        quiet = None if policy is None else policy.quiet
        if quiet is not None and due_at is not None:
            raise InvalidJob(
                f"{kind.name}: with a debounce policy its quiet period says when it runs, no delay or run_at"
            )
        lifetime = _duration(expires_in) if expires_in is not None else kind.expires_in
        expires_at = None if lifetime is None else now + lifetime
        if expires_at is not None and expires_at <= (due_at or (now if quiet is None else now + quiet)):
            raise InvalidJob(f"{kind.name}: it expires at {expires_at.isoformat()}, before it may run")
        return encode(
            job,
            id=id,
            queue=queue,
            priority=priority,
            key=key,
            tenant=tenant,
            sent_at=now,
            due_at=due_at,
            expires_at=expires_at,
            traceparent=traceparent or current_traceparent(),
            max_bytes=self.max_bytes,
        )

    def policy(
        self,
        job: Job,
        *,
        key: str | None = None,
        unique: UniquePolicy | None = None,
        unique_for: Duration | None = None,
        unique_states: Sequence[str] | None = None,
        debounce: Duration | None = None,
    ) -> Unique | None:
        """What is to become of the job if its key is held: as this call says, else as its kind does.

        Raises:
            InvalidJob: the options do not go together, or there is no key.
        """
        kind = _kind(job)
        if unique is None and unique_for is None and unique_states is None and debounce is None:
            return kind.unique
        try:
            policy = Unique.of(unique, unique_for, unique_states, debounce)
        except ValueError as error:
            raise InvalidJob(f"{kind.name}: {error}") from error
        if not kind.track:
            raise InvalidJob(f"{kind.name}: unique={unique!r} needs the ledger, and this kind has track=False")
        if key is None and not kind.unique_by and kind.unique is None:
            raise InvalidJob(
                f"{kind.name}: unique={unique!r} needs a key; give key=…, or unique_by=(…) beside the kind"
            )
        return policy

    def envelopes(self, jobs: Iterable[Job]) -> list[Envelope]:
        """All or none: one wrong job and nothing is sent. The error says which, counted from 0."""
        prepared: list[Envelope] = []
        for number, job in enumerate(jobs):
            try:
                prepared.append(self.envelope(job, policy=_kind(job).unique))
            except InvalidJob as error:
                error.add_note(f"it is number {number} of the batch; nothing was sent")
                raise
        return prepared

    def _check_queue(self, kind: str, queue: str) -> None:
        known = self.queues | registry.queues()
        if queue not in known:
            raise UnknownQueue(
                f"{kind}: unknown queue {queue!r}; known are {', '.join(sorted(known))}. "
                f"Name it in a kind or list [queues.{queue}] in penstock.toml"
            )

    def _due_at(self, kind: str, now: datetime, delay: Duration | None, run_at: datetime | None) -> datetime | None:
        if delay is not None and run_at is not None:
            raise InvalidJob(f"{kind}: give delay or run_at, not both")
        if run_at is not None:
            if run_at.tzinfo is None:
                raise InvalidJob(f"{kind}: run_at {run_at.isoformat()} has no time zone; give an aware datetime")
            return run_at.astimezone(UTC) if run_at > now else None
        if delay is None:
            return None
        wait = _duration(delay)
        if wait < timedelta(0):
            raise InvalidJob(f"{kind}: delay must not be negative")
        return now + wait if wait > timedelta(0) else None


def moment(run_at: datetime | None, delay: Duration | None) -> datetime:
    """The time that one of them says.

    Raises:
        InvalidJob: both or none are given, or it is no time.
    """
    if (run_at is None) == (delay is None):
        raise InvalidJob("give run_at or delay")
    if run_at is not None:
        if run_at.tzinfo is None:
            raise InvalidJob(f"run_at {run_at.isoformat()} has no time zone; give an aware datetime")
        return run_at.astimezone(UTC)
    return datetime.now(UTC) + _duration(delay or 0.0)


def _kind(job: Job) -> Kind:
    if not isinstance(job, Job):
        raise InvalidJob(f"enqueue takes a Job, not {type(job).__name__}; make one from its class first")
    return job.kind()


def _duration(value: Duration) -> timedelta:
    return value if isinstance(value, timedelta) else timedelta(seconds=value)
