"""Producer: what a web backend holds to enqueue jobs."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack

from penstock.config.errors import PenstockError
from penstock.producers.enqueue.calls import BaseProducer, Call
from penstock.producers.enqueue.options import EnqueueOptions
from penstock.producers.enqueue.override import Override
from penstock.producers.handles.handles import JobHandle
from penstock.producers.senders import Sender, open_sender
from penstock.producers.traces.sending import sending
from penstock.schemas.jobs.durations import Duration

if TYPE_CHECKING:
    from penstock.schemas.jobs.job import Job

T = TypeVar("T")


class Producer(BaseProducer[Sender, JobHandle]):
    """Sends jobs; thread-safe, and safe after a fork. Connects with the first job.

    Arguments:
        broker_url: `redis://…` or `amqp://…`.
        sender: another sender than the one for that URL.
        database_url: the ledger's, for handles; None: as the settings say when a handle first asks.
        storage_url: where large results are, for handles; None: likewise.
        prefix: of the names of queues and keys on the broker; `penstock`.
        timeout: seconds that the broker may take before `BrokerUnavailable`; 5.
        max_payload_bytes: the largest job; 256 KiB.
        queues: known ones in addition to those that kinds name.
        max_lengths: of queues that have a limit, in jobs.
    """

    _handle_class = JobHandle

    def enqueue(self, job: Job, **options: Unpack[EnqueueOptions]) -> JobHandle:
        """Send one job; when this returns, the broker has it.

        Arguments:
            delay: run it no sooner than this from now, as a timedelta or in seconds.
            run_at: or no sooner than then; an aware datetime.
            priority: `high`, `normal` or `low`; as its kind says if not given.
            key: the thing that it is about, to find it by.
            tenant: the customer on whose behalf it runs.
            expires_in: discard it if it has not run by then, as a timedelta or in seconds.
            queue: another queue than its kind's.
            id: its id; a new one if not given. Giving one makes a repeated call harmless.
            traceparent: the W3C trace it belongs to; that of the current span or request if not given.
            unique: the policy where another job of its kind and tenant holds its key, in place of its kind's:
                `reject`, `existing`, `replace` or `debounce`.
            unique_for, unique_states, debounce: details of that policy, as those of a kind.
            tags: words to find it by in lists; at most 10, of at most 64 characters each.

        A unique job is recorded in the ledger first. When this returns the ledger has it, and the broker too unless
        that is unavailable: then the dispatcher sends it later.

        Raises:
            InvalidJob: the job or an option is wrong (also UnknownQueue, PayloadTooLarge, KindError).
            DuplicateJob: its key is held, and the policy is `reject`.
            LedgerUnavailable: a unique job could not be recorded.
            BrokerUnavailable: the broker does not answer within the timeout.
            QueueFull: the queue is at its limit.
            TypeError: an option does not exist.
        """
        envelope, policy = self._builder.build(job, options)
        if policy is None:  # most jobs; a generator takes half a microsecond more
            envelopes = (envelope,)
            with sending(envelopes):
                self._sender.send(envelopes)
            return self._handle_of(envelope)
        [handle] = self._run(self._enqueue_unique([(envelope, policy)]))
        return handle

    def enqueue_many(self, jobs: Iterable[Job]) -> list[JobHandle]:
        """Send many, in order, in one round trip per few hundred. All are checked before the first is sent.

        Unique jobs are decided in order, those of the same call among each other too. If one is refused, nothing is
        sent; with the policy `existing` each gets its handle.

        Raises:
            As `enqueue`. After BrokerUnavailable some may have been sent.
        """
        return self._run(self._enqueue_many(jobs))

    def cancel(self, *, key: str, kind: str | None = None, tenant: str | None = None) -> list[str]:
        """Cancel every job with a key that was enqueued until now, and return the ids of those on record.

        A waiting job is cancelled at once, a running one through its worker. A job that the broker has and no worker
        has seen is not on record; it is cancelled when a worker gets it.

        Arguments:
            kind, tenant: only theirs.

        Raises:
            LedgerUnavailable.
        """
        return self._cancel(key, kind, tenant)

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
        return self._reschedule(key, run_at, delay, kind, tenant)

    def ping(self) -> None:
        """Check that the broker answers and takes jobs; for readiness checks.

        Raises:
            BrokerUnavailable: it does not answer within the timeout, or takes none: its memory or disk is full, or it
                is a replica.
        """
        self._sender.ping()

    def close(self) -> None:
        """Close the connections. Waits under way end with WatchClosed. A later call connects again."""
        self._sender.close()
        self._ledger.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open_sender(self, url: str, **options: Any) -> Sender:
        return open_sender(url, **options)

    def _sender_of(self, override: Override) -> Sender:
        return override.sender

    def _run(self, call: Call[T]) -> T:
        try:
            step = next(call)
            while True:
                result = None
                try:
                    if callable(step):
                        result = step()
                    else:
                        self._sender.send(step)
                except PenstockError as error:
                    step = call.throw(error)
                else:
                    step = call.send(result)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
