"""Job and options → envelope: the pure part of enqueueing, which connects to nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import cast

from penstock.config.errors import InvalidJob, UnknownQueue
from penstock.producers.enqueue.options import POLICY_OPTIONS, EnqueueOptions, check_options
from penstock.producers.traces import current_traceparent
from penstock.schemas.jobs.job import Job
from penstock.schemas.jobs.kind import Kind, registry
from penstock.schemas.jobs.unique_policy import Unique
from penstock.schemas.wire.codec import HEADER, Envelope, encode

Prepared = tuple[Envelope, Unique | None]
"""An envelope, and the policy of its job; None: the job is not unique."""


@dataclass(frozen=True)
class EnvelopeBuilder:
    """Checks everything that can be checked before anything is sent.

    Attributes:
        max_bytes: the largest body, in bytes.
        queues: those that penstock.toml lists; queues that kinds name are known in addition.
    """

    max_bytes: int = 256 * 1024
    queues: frozenset[str] = field(default_factory=frozenset)

    def build(self, job: Job, options: EnqueueOptions) -> Prepared:
        """Job with its options → envelope and policy.

        Raises:
            InvalidJob: the job or an option is wrong (also UnknownQueue, PayloadTooLarge, KindError).
            TypeError: an option does not exist.
        """
        kind = _kind(job)
        if options:
            try:
                options = cast(EnqueueOptions, check_options(options))
            except ValueError as error:
                raise InvalidJob(f"{kind.name}: {error}") from error
        policy = _policy(kind, options) if options else kind.unique
        return self._envelope(job, kind, options, policy), policy

    def build_many(self, jobs: Iterable[Job]) -> list[Prepared]:
        """Jobs without options → envelopes and policies, in order.

        Raises:
            InvalidJob: one job is wrong, and nothing may be sent; a note says which, counted from 0.
        """
        if isinstance(jobs, Job):  # which can be iterated over, too: it yields its fields
            raise InvalidJob(f"enqueue_many takes several jobs, not one {type(jobs).__name__}; send that with enqueue")
        prepared: list[Prepared] = []
        for number, job in enumerate(jobs):
            try:
                prepared.append(self.build(job, {}))
            except InvalidJob as error:
                error.add_note(f"it is number {number} of the batch; nothing was sent")
                raise
        return prepared

    def _envelope(self, job: Job, kind: Kind, options: EnqueueOptions, policy: Unique | None) -> Envelope:
        now = datetime.now(UTC)
        quiet = None if policy is None else policy.quiet
        if not options and quiet is None and kind.expires_in is None:
            # Most jobs: nothing to check, and `encode` takes the rest from the kind.
            return encode(job, sent_at=now, traceparent=current_traceparent(), max_bytes=self.max_bytes)
        queue = options.get("queue")
        if queue is not None and queue != kind.queue:
            self._check_queue(kind.name, queue)
        due_at, expires_at = self._times(kind, now, options, quiet)
        return encode(
            job,
            id=options.get("id"),
            queue=queue,
            priority=options.get("priority"),
            key=options.get("key"),
            tenant=options.get("tenant"),
            sent_at=now,
            due_at=due_at,
            expires_at=expires_at,
            traceparent=options.get("traceparent") or current_traceparent(),
            max_bytes=self.max_bytes,
            tags=options.get("tags") or (),
        )

    def _times(
        self, kind: Kind, now: datetime, options: EnqueueOptions, quiet: timedelta | None
    ) -> tuple[datetime | None, datetime | None]:
        """Due time and expiry; None: there is none."""
        delay, run_at = options.get("delay"), options.get("run_at")
        if delay is not None and run_at is not None:
            raise InvalidJob(f"{kind.name}: give delay or run_at, not both")
        due_at = self._due_at(now, cast(timedelta | None, delay), run_at)
        if quiet is not None and due_at is not None:
            raise InvalidJob(
                f"{kind.name}: with a debounce policy its quiet period says when it runs, no delay or run_at"
            )
        expires_in = options.get("expires_in")
        lifetime = kind.expires_in if expires_in is None else cast(timedelta, expires_in)
        expires_at = None if lifetime is None else now + lifetime
        if expires_at is not None and expires_at <= (due_at or (now if quiet is None else now + quiet)):
            raise InvalidJob(f"{kind.name}: it expires at {expires_at.isoformat()}, before it may run")
        return due_at, expires_at

    def _check_queue(self, kind: str, queue: str) -> None:
        names = self.queues | registry.queues()
        if queue not in names:
            raise UnknownQueue(
                f"{kind}: unknown queue {queue!r}; known are {', '.join(sorted(names))}. "
                f"Name it in a kind or list [queues.{queue}] in penstock.toml"
            )

    def _due_at(self, now: datetime, delay: timedelta | None, run_at: datetime | None) -> datetime | None:
        if run_at is not None:
            return run_at if run_at > now else None
        return now + delay if delay else None


def target_queue(envelope: Envelope) -> str:
    """Queue in which the job will run; `envelope.queue` is the dispatcher's until the job is due."""
    return str(envelope.headers[HEADER].get("queue") or envelope.queue)


def _policy(kind: Kind, options: EnqueueOptions) -> Unique | None:
    """Policy of the call, else of the kind."""
    if POLICY_OPTIONS.isdisjoint(options):
        return kind.unique
    unique, unique_for = options.get("unique"), options.get("unique_for")
    unique_states, debounce = options.get("unique_states"), options.get("debounce")
    try:
        policy = Unique.of(unique, unique_for, unique_states, debounce)
    except ValueError as error:
        raise InvalidJob(f"{kind.name}: {error}") from error
    if not kind.track:
        raise InvalidJob(f"{kind.name}: unique={unique!r} needs the ledger, and this kind has track=False")
    if options.get("key") is None and not kind.unique_by and kind.unique is None:
        raise InvalidJob(f"{kind.name}: unique={unique!r} needs a key; give key=…, or unique_by=(…) with the kind")
    return policy


def _kind(job: Job) -> Kind:
    if not isinstance(job, Job):
        name = f"the class {job.__name__}" if isinstance(job, type) else type(job).__name__
        raise InvalidJob(f"enqueue takes a Job, not {name}; make one from its class first")
    return job.kind()
