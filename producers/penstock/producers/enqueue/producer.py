"""Producers: what a web backend holds to enqueue jobs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from penstock.config.errors import PenstockError
from penstock.producers.enqueue.options import OF_POLICIES, Duration, Preparation, moment
from penstock.producers.handles.connections import LedgerLink
from penstock.producers.handles.handles import AsyncJobHandle, JobHandle
from penstock.producers.senders import AsyncSender, Sender, open_async_sender, open_sender
from penstock.schemas.jobs.kind import Priority
from penstock.schemas.jobs.unique_policy import Unique, UniquePolicy
from penstock.schemas.wire.codec import HEADER, Envelope

if TYPE_CHECKING:
    from penstock.config.settings import Settings
    from penstock.ledger.transitions.enqueue import Admission
    from penstock.producers.enqueue.unique import Entrance
    from penstock.schemas.jobs.job import Job


class _Base:
    """What both producers are made of, but for the sender."""

    def __init__(
        self,
        broker_url: str,
        *,
        database_url: str | None = None,
        storage_url: str | None = None,
        prefix: str = "penstock",
        timeout: float = 5.0,
        max_payload_bytes: int = 256 * 1024,
        queues: Iterable[str] = (),
        max_lengths: dict[str, int] | None = None,
    ) -> None:
        self.broker_url = broker_url
        self._preparation = Preparation(max_payload_bytes, frozenset(queues))
        self._ledger = LedgerLink(
            database_url, storage_url=storage_url, broker_url=broker_url, prefix=prefix, timeout_seconds=timeout
        )
        self._sender_options: dict[str, Any] = {
            "prefix": prefix,
            "timeout_seconds": timeout,
            "max_lengths": max_lengths,
        }

    @classmethod
    def from_settings(cls, settings: Settings | None = None) -> Self:
        """A producer as `penstock.toml` and the environment say; reads them now if no settings are given.

        Raises:
            ConfigError: a setting is wrong.
        """
        if settings is None:
            from penstock.config.settings import load_settings

            settings = load_settings()
        limits = {name: queue.max_length for name, queue in settings.queues.items() if queue.max_length is not None}
        return cls(
            settings.broker_url,
            database_url=settings.database_url,
            storage_url=settings.storage_url,
            prefix=settings.prefix,
            timeout=settings.broker_timeout_seconds,
            max_payload_bytes=settings.max_payload_bytes,
            queues=settings.queues,
            max_lengths=limits,
        )

    def _entrance(self, envelopes: Sequence[Envelope], policies: Sequence[Unique | None]) -> Entrance:
        database = self._ledger.open()  # first: it says what to install where SQL is missing
        from penstock.producers.enqueue.unique import Entrance

        return Entrance(database, envelopes, policies)


class Producer(_Base):
    """Sends jobs; thread-safe, and safe after a fork. Connects with the first job.

    Arguments:
        broker_url: `redis://…` or `amqp://…`.
        database_url: the ledger's, for handles; None: as the settings say when a handle first asks.
        storage_url: where large results are, for handles; None: likewise.
        timeout: seconds that the broker may take before `BrokerUnavailable`.
        queues: known ones beside those that kinds name.
        max_lengths: of queues that have a limit.
    """

    def __init__(self, broker_url: str, *, sender: Sender | None = None, **options: Any) -> None:
        super().__init__(broker_url, **options)
        if sender is not None:
            self._ledger.broker_url = None  # there is no Redis to hear of changes through
        self._sender: Sender = sender or open_sender(broker_url, **self._sender_options)

    def enqueue(
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
        unique: UniquePolicy | None = None,
        unique_for: Duration | None = None,
        unique_states: Sequence[str] | None = None,
        debounce: Duration | None = None,
    ) -> JobHandle:
        """Send one job; when this returns, the broker has it.

        Arguments:
            delay: run it no sooner than this from now, as a timedelta or in seconds.
            run_at: or no sooner than then; an aware datetime.
            priority: `high`, `normal` or `low`.
            key: what it is about, to find it by.
            tenant: on whose behalf.
            expires_in: discard it if it has not run by then.
            queue: another queue than its kind's.
            id: its id; made here if not given. Giving one makes a repeated call harmless.
            unique: what becomes of it if another job of its kind and tenant holds its key, in place of what its kind
                says: `reject`, `existing`, `replace` or `debounce`; the next three as beside a kind.

        A unique job is entered in the ledger first. When this returns the ledger has it, and the broker too unless that
        is away: then the dispatcher sends it later.

        Raises:
            InvalidJob: the job or an option is wrong (also UnknownQueue, PayloadTooLarge, KindError).
            DuplicateJob: its key is held, and the policy is `reject`.
            LedgerUnavailable: a unique job could not be entered.
            BrokerUnavailable: the broker does not answer within the timeout.
            QueueFull: the queue is at its limit.
        """
        policy = self._preparation.policy(
            job, key=key, unique=unique, unique_for=unique_for, unique_states=unique_states, debounce=debounce
        )
        envelope = self._preparation.envelope(
            job,
            delay=delay,
            run_at=run_at,
            priority=priority,
            key=key,
            tenant=tenant,
            expires_in=expires_in,
            queue=queue,
            id=id,
            traceparent=traceparent,
            policy=policy,
        )
        if policy is not None:
            return (self._enter([envelope], [policy]))[0]
        self._sender.send((envelope,))
        return self._handle(envelope)

    def enqueue_many(self, jobs: Iterable[Job]) -> list[JobHandle]:
        """Send many, in order, in one round trip per few hundred. All are checked before the first is sent.

        Unique ones are decided about in order, those of the same call among each other too. One that is refused and
        nothing is sent; with the policy `existing` each gets its handle.

        Raises:
            As `enqueue`. After BrokerUnavailable some may have been sent.
        """
        jobs = list(jobs)
        envelopes = self._preparation.envelopes(jobs)
        policies = [job.kind().unique for job in jobs]
        if any(policies):
            return self._enter(envelopes, policies)
        self._sender.send(envelopes)
        return [self._handle(envelope) for envelope in envelopes]

    def cancel(self, *, key: str, kind: str | None = None, tenant: str | None = None) -> list[str]:
        """Cancel every job with a key that was enqueued until now, and return the ids of those on record.

        At once what waits, through its worker what runs. One that the broker has and no worker has seen is not on
        record; it is cancelled when a worker gets it.

        Arguments:
            kind, tenant: only theirs.

        Raises:
            LedgerUnavailable.
        """
        from penstock.ledger.transitions.cancel import cancel_key

        return cancel_key(self._ledger.open(), key, kind=kind, tenant=tenant)

    def reschedule(
        self,
        *,
        key: str,
        run_at: datetime | None = None,
        delay: Duration | None = None,
        kind: str | None = None,
        tenant: str | None = None,
    ) -> list[str]:
        """Move the due time of every job with a key that waits for it in the ledger. Returns their ids.

        Arguments:
            run_at, delay: one of them, as in `enqueue`.
            kind, tenant: only theirs.

        Raises:
            InvalidState: none of them waits for its time, or it would expire before; JobNotFound: there is none.
        """
        from penstock.ledger.transitions.reschedule import reschedule_key

        return reschedule_key(self._ledger.open(), key, moment(run_at, delay), kind=kind, tenant=tenant)

    def handle(self, job_id: str, kind: str = "", queue: str = "") -> JobHandle:
        """A handle for a job sent earlier."""
        return JobHandle(job_id, kind, queue, self._ledger)

    def ping(self) -> None:
        """Raises BrokerUnavailable if the broker does not answer; for readiness checks."""
        self._sender.ping()

    def close(self) -> None:
        """Close the connections. Waits under way end with WatchClosed. It connects anew if it is used again."""
        self._sender.close()
        self._ledger.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _enter(self, envelopes: Sequence[Envelope], policies: Sequence[Unique | None]) -> list[JobHandle]:
        entrance = self._entrance(envelopes, policies)
        sending = entrance.enter()
        try:
            if sending:
                self._sender.send(sending)
        except PenstockError as error:
            if entrance.failed(error):
                raise
        else:
            entrance.sent()
        return [self._standing(*pair) for pair in zip(envelopes, entrance.answers, strict=True)]

    def _standing(self, envelope: Envelope, answer: Admission) -> JobHandle:
        handle = self._handle(_stands_for(envelope, answer))
        handle.created = answer.created
        return handle

    def _handle(self, envelope: Envelope) -> JobHandle:
        return JobHandle(envelope.id, envelope.kind, _target(envelope), self._ledger)


class AsyncProducer(_Base):
    """`Producer` for coroutines. One may serve several event loops."""

    def __init__(self, broker_url: str, *, sender: AsyncSender | None = None, **options: Any) -> None:
        super().__init__(broker_url, **options)
        if sender is not None:
            self._ledger.broker_url = None
        self._sender: AsyncSender = sender or open_async_sender(broker_url, **self._sender_options)

    def gather(self) -> None:
        """From now on send together what coroutines of one event loop enqueue at a time; for a process that does little
        else. One that comes alone does not wait."""
        from penstock.producers.senders.batching import GatheringSender

        self._sender = GatheringSender(self._sender, self._sender_options["max_lengths"] or ())

    async def enqueue(
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
        unique: UniquePolicy | None = None,
        unique_for: Duration | None = None,
        unique_states: Sequence[str] | None = None,
        debounce: Duration | None = None,
    ) -> AsyncJobHandle:
        """See `Producer.enqueue`."""
        policy = self._preparation.policy(
            job, key=key, unique=unique, unique_for=unique_for, unique_states=unique_states, debounce=debounce
        )
        envelope = self._preparation.envelope(
            job,
            delay=delay,
            run_at=run_at,
            priority=priority,
            key=key,
            tenant=tenant,
            expires_in=expires_in,
            queue=queue,
            id=id,
            traceparent=traceparent,
            policy=policy,
        )
        if policy is not None:
            return (await self._enter([envelope], [policy]))[0]
        await self._sender.send((envelope,))
        return self._handle(envelope)

    async def enqueue_many(self, jobs: Iterable[Job]) -> list[AsyncJobHandle]:
        """See `Producer.enqueue_many`."""
        jobs = list(jobs)
        envelopes = self._preparation.envelopes(jobs)
        policies = [job.kind().unique for job in jobs]
        if any(policies):
            return await self._enter(envelopes, policies)
        await self._sender.send(envelopes)
        return [self._handle(envelope) for envelope in envelopes]

    async def enqueue_each(
        self, items: Iterable[tuple[Job, Mapping[str, Any]]]
    ) -> list[AsyncJobHandle | PenstockError]:
        """Send many, each with options of its own. One that is refused does not stop the others.

        Arguments:
            items: jobs, each with the options of `enqueue`.

        Returns for each, in order, its handle, or why it was not sent; after BrokerUnavailable it may have been.
        """
        answers: list[AsyncJobHandle | PenstockError | None] = []
        free: dict[str, list[tuple[int, Envelope]]] = {}
        for number, (job, options) in enumerate(items):
            about = {name: value for name, value in options.items() if name in OF_POLICIES}
            rest = {name: value for name, value in options.items() if name not in OF_POLICIES}
            answers.append(None)
            try:
                policy = self._preparation.policy(job, key=options.get("key"), **about)
                envelope = self._preparation.envelope(job, policy=policy, **rest)
                if policy is None:
                    free.setdefault(envelope.queue, []).append((number, envelope))
                else:
                    [answers[number]] = await self._enter([envelope], [policy])
            except PenstockError as error:
                answers[number] = error
        for group in free.values():  # by queue, as one may be full and the next not
            refusal = await self._refusal([envelope for _, envelope in group])
            for number, envelope in group:
                answers[number] = refusal or self._handle(envelope)
        return [answer for answer in answers if answer is not None]

    async def _refusal(self, envelopes: Sequence[Envelope]) -> PenstockError | None:
        try:
            await self._sender.send(envelopes)
        except PenstockError as error:
            return error
        return None

    async def cancel(self, *, key: str, kind: str | None = None, tenant: str | None = None) -> list[str]:
        """See `Producer.cancel`."""
        import asyncio

        from penstock.ledger.transitions.cancel import cancel_key

        database = await asyncio.to_thread(self._ledger.open)
        return await asyncio.to_thread(cancel_key, database, key, kind=kind, tenant=tenant)

    async def reschedule(
        self,
        *,
        key: str,
        run_at: datetime | None = None,
        delay: Duration | None = None,
        kind: str | None = None,
        tenant: str | None = None,
    ) -> list[str]:
        """See `Producer.reschedule`."""
        import asyncio

        from penstock.ledger.transitions.reschedule import reschedule_key

        time = moment(run_at, delay)
        database = await asyncio.to_thread(self._ledger.open)
        return await asyncio.to_thread(reschedule_key, database, key, time, kind=kind, tenant=tenant)

    def handle(self, job_id: str, kind: str = "", queue: str = "") -> AsyncJobHandle:
        """A handle for a job sent earlier."""
        return AsyncJobHandle(job_id, kind, queue, self._ledger)

    async def ping(self) -> None:
        """Raises BrokerUnavailable if the broker does not answer."""
        await self._sender.ping()

    async def close(self) -> None:
        """Close the connections of the running loop."""
        await self._sender.close()
        await self._ledger.close_async()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _enter(self, envelopes: Sequence[Envelope], policies: Sequence[Unique | None]) -> list[AsyncJobHandle]:
        import asyncio

        entrance = await asyncio.to_thread(self._entrance, envelopes, policies)
        sending = await asyncio.to_thread(entrance.enter)
        try:
            if sending:
                await self._sender.send(sending)
        except PenstockError as error:
            if await asyncio.to_thread(entrance.failed, error):
                raise
        else:
            await asyncio.to_thread(entrance.sent)
        return [self._standing(*pair) for pair in zip(envelopes, entrance.answers, strict=True)]

    def _standing(self, envelope: Envelope, answer: Admission) -> AsyncJobHandle:
        handle = self._handle(_stands_for(envelope, answer))
        handle.created = answer.created
        return handle

    def _handle(self, envelope: Envelope) -> AsyncJobHandle:
        return AsyncJobHandle(envelope.id, envelope.kind, _target(envelope), self._ledger)


def _target(envelope: Envelope) -> str:
    return str(envelope.headers[HEADER].get("queue") or envelope.queue)


def _stands_for(envelope: Envelope, answer: Admission) -> Envelope:
    """The envelope as that of the job that stands for it."""
    if answer.created:
        return envelope
    return Envelope(answer.queue, envelope.priority, {**envelope.headers, "id": answer.job_id, HEADER: {}}, b"")
