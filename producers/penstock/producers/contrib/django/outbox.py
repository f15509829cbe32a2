"""The outbox in the transaction of Django's ORM."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Unpack

from penstock.producers.enqueue.envelopes import target_queue
from penstock.producers.enqueue.options import EnqueueOptions
from penstock.producers.enqueue.outbox_rows import BaseOutbox, Entry, make_entries, make_entry, sealed_entry
from penstock.producers.handles.handles import JobHandle

if TYPE_CHECKING:
    from penstock.schemas.jobs.job import Job
    from penstock.schemas.wire.codec import Envelope


class Outbox(BaseOutbox):
    """Enqueues jobs in the current `transaction.atomic()`, which commits them or rolls them back. Thread-safe.

    Outside of one the connection is in autocommit, and a job is committed at once.

    Arguments:
        using: the alias of the database that the caller's data is in; None: as the routers say for `OutboxEntry`.
        others: as for `penstock.producers.outbox.Outbox`.
    """

    def __init__(self, *, using: str | None = None, **others: Any) -> None:
        super().__init__(**others)
        self._using = using

    def enqueue(self, job: Job, *, using: str | None = None, **options: Unpack[EnqueueOptions]) -> JobHandle:
        """Write one job, with one INSERT, to be sent if and when the transaction is committed.

        Arguments:
            using: another database than the outbox's own, for this job.
            options: those of `Producer.enqueue`. Whether a unique job's key is held is decided after the commit: one
                that is refused then is logged, and its handle finds no job.

        Returns a handle, whose id is known before the commit.

        Raises:
            InvalidJob: the job or an option is wrong (also UnknownQueue, PayloadTooLarge, KindError); nothing was
                written, and the transaction goes on.
        """
        return self._handle(self.write(job, options, using))

    def write(self, job: Job, options: EnqueueOptions, using: str | None = None) -> Envelope:
        """`enqueue`, for those who need no handle. Returns the envelope that was written."""
        entry = make_entry(self._builder, job, options)
        self._insert([entry], using)
        return entry[0]

    def add_current(self, envelope: Envelope) -> None:
        """Write a message of another framework's, which is an envelope already, as `enqueue` writes a job's."""
        self._insert([sealed_entry(envelope)], None)

    def enqueue_many(self, jobs: Iterable[Job], *, using: str | None = None) -> list[JobHandle]:
        """Write many, in order. All are checked before the first is written, and all are written or none.

        Raises:
            As `enqueue`; says which one is wrong, counted from 0.
        """
        entries = make_entries(self._builder, jobs)
        self._insert(entries, using)
        return [self._handle(envelope) for envelope, _ in entries]

    def _insert(self, entries: list[Entry], using: str | None) -> None:
        from penstock.producers.contrib.django.models import OutboxEntry  # once the apps are loaded

        rows = []
        for _, row in entries:
            rest = dict(row)
            rows.append(OutboxEntry(job_id=rest.pop("id"), **rest))
        manager = OutboxEntry._default_manager
        manager.using(using or self._using).bulk_create(rows)

    def _handle(self, envelope: Envelope) -> JobHandle:
        return JobHandle(envelope.id, envelope.kind, target_queue(envelope), self._ledger)
