"""Calls of both producers, without their I/O: what is sent and what is asked of the ledger, in which order."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, cast

from penstock.config.errors import PenstockError
from penstock.producers.enqueue.envelopes import EnvelopeBuilder, Prepared, target_queue
from penstock.producers.enqueue.options import EnqueueOptions
from penstock.producers.enqueue.override import Override, register_producer
from penstock.producers.handles.connections import LedgerConnections
from penstock.producers.handles.handles import AsyncJobHandle, JobHandle
from penstock.producers.senders import AsyncSender, Sender
from penstock.producers.senders.memory import MemoryBroker
from penstock.producers.traces.sending import sending
from penstock.schemas.jobs.durations import Duration, resolve_run_at
from penstock.schemas.jobs.overrides import override_kinds
from penstock.schemas.wire.codec import Envelope

if TYPE_CHECKING:
    from penstock.config.settings import Settings
    from penstock.ledger.transitions.enqueue import Admission
    from penstock.producers.enqueue.unique import UniqueEnqueue
    from penstock.schemas.jobs.job import Job

H = TypeVar("H", bound=JobHandle | AsyncJobHandle)
S = TypeVar("S", bound=Sender | AsyncSender)
T = TypeVar("T")

Step = Sequence[Envelope] | Callable[[], Any]
"""Envelopes to send, or a function to call: it asks the ledger, and blocks meanwhile."""
Call = Generator[Step, Any, T]
"""Yields steps, is sent their results and thrown their errors, and returns what the caller gets."""


class BaseProducer(Generic[S, H]):
    """Both producers but for their I/O. `Producer` documents the arguments."""

    _handle_class: type[H]

    def __init__(
        self,
        broker_url: str,
        *,
        sender: S | None = None,
        database_url: str | None = None,
        storage_url: str | None = None,
        prefix: str = "penstock",
        timeout: float = 5.0,
        max_payload_bytes: int = 256 * 1024,
        queues: Iterable[str] = (),
        max_lengths: dict[str, int] | None = None,
    ) -> None:
        self.broker_url = broker_url
        self._max_lengths = max_lengths or {}
        self._own_builder = EnvelopeBuilder(max_payload_bytes, frozenset(queues))
        self._own_ledger = LedgerConnections(
            database_url,
            storage_url=storage_url,
            broker_url=broker_url if sender is None else None,  # else no Redis notifies of changes
            prefix=prefix,
            timeout_seconds=timeout,
        )
        if sender is None:
            sender = self._open_sender(broker_url, prefix=prefix, timeout_seconds=timeout, max_lengths=max_lengths)
        self._own_sender: S = sender
        self._sender: S = sender
        self._ledger, self._builder = self._own_ledger, self._own_builder
        register_producer(self)

    @classmethod
    def from_settings(cls, settings: Settings | None = None) -> Self:
        """A producer as `penstock.toml` and the environment say; reads them now if no settings are given.

        Raises:
            ConfigError: a setting is wrong.
        """
        if settings is None:
            from penstock.config.settings import load_settings

            settings = load_settings()
        override_kinds(settings.kinds)
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

    def handle(self, job_id: str, kind: str = "", queue: str = "") -> H:
        """A handle for a job sent earlier."""
        return self._handle_class(job_id, kind, queue, self._ledger)

    def use(self, override: Override | None) -> None:
        """Take the connections of a test, or one's own again. The inline engine's producer, whose broker is in memory
        already, keeps its own."""
        if override is None or isinstance(self._own_sender, MemoryBroker):
            self._sender, self._ledger, self._builder = self._own_sender, self._own_ledger, self._own_builder
        else:
            self._sender = self._sender_of(override)
            self._ledger, self._builder = override.ledger, override.adjust(self._own_builder)

    def _open_sender(self, url: str, **options: Any) -> S:
        raise NotImplementedError

    def _sender_of(self, override: Override) -> S:
        raise NotImplementedError

    # The calls.

    def _enqueue_many(self, jobs: Iterable[Job]) -> Call[list[H]]:
        prepared = self._builder.build_many(jobs)
        if any(policy for _, policy in prepared):
            return (yield from self._enqueue_unique(prepared))
        envelopes = [envelope for envelope, _ in prepared]
        with sending(envelopes):
            yield envelopes
        return [self._handle_of(envelope) for envelope in envelopes]

    def _enqueue_each(self, items: Iterable[tuple[Job, Mapping[str, Any]]]) -> Call[list[H | PenstockError]]:
        answers: list[H | PenstockError | None] = []
        free: dict[str, list[tuple[int, Envelope]]] = {}
        for number, (job, options) in enumerate(items):
            answers.append(None)
            try:
                envelope, policy = self._builder.build(job, cast(EnqueueOptions, options))
                if policy is None:
                    free.setdefault(envelope.queue, []).append((number, envelope))
                else:
                    [answers[number]] = yield from self._enqueue_unique([(envelope, policy)])
            except PenstockError as error:
                answers[number] = error
        for group in free.values():  # by queue, as one may be full and the next not
            refusal: PenstockError | None = None
            envelopes = [envelope for _, envelope in group]
            try:
                with sending(envelopes):
                    yield envelopes
            except PenstockError as error:
                refusal = error
            for number, envelope in group:
                answers[number] = refusal or self._handle_of(envelope)
        return [answer for answer in answers if answer is not None]

    def _enqueue_unique(self, prepared: Sequence[Prepared]) -> Call[list[H]]:
        with sending([envelope for envelope, _ in prepared]):
            return (yield from self._record_and_send(prepared))

    def _record_and_send(self, prepared: Sequence[Prepared]) -> Call[list[H]]:
        unique: UniqueEnqueue = yield lambda: self._open_unique(prepared)
        to_send: list[Envelope] = yield unique.admit
        try:
            if to_send:
                yield to_send
        except PenstockError as failure:
            error = failure
            if (yield lambda: unique.failed(error)):
                raise
        else:
            yield unique.sent
        pairs = zip(prepared, unique.admissions, strict=True)
        return [self._handle_of(envelope, admission) for (envelope, _), admission in pairs]

    def _open_unique(self, prepared: Sequence[Prepared]) -> UniqueEnqueue:
        database = self._ledger.open()  # first: it says what to install where SQL is missing
        from penstock.producers.enqueue.unique import UniqueEnqueue

        return UniqueEnqueue(database, prepared)

    def _handle_of(self, envelope: Envelope, admission: Admission | None = None) -> H:
        if admission is None or admission.created:
            return self._handle_class(envelope.id, envelope.kind, target_queue(envelope), self._ledger)
        handle = self._handle_class(admission.job_id, envelope.kind, admission.queue, self._ledger)
        handle.created = False
        return handle

    def _cancel(self, key: str, kind: str | None, tenant: str | None) -> list[str]:
        """Blocks."""
        from penstock.ledger.transitions.cancel import cancel_key

        return cancel_key(self._ledger.open(), key, kind=kind, tenant=tenant)

    def _reschedule(
        self, key: str, run_at: datetime | None, delay: Duration | None, kind: str | None, tenant: str | None
    ) -> list[str]:
        """Blocks."""
        from penstock.ledger.transitions.reschedule import reschedule_key

        due_at = resolve_run_at(run_at, delay)
        return reschedule_key(self._ledger.open(), key, due_at, kind=kind, tenant=tenant)
