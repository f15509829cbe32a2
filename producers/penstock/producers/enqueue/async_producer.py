"""AsyncProducer: `Producer` for coroutines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack

from penstock.config.errors import PenstockError
from penstock.producers.enqueue.calls import BaseProducer, Call
from penstock.producers.enqueue.options import EnqueueOptions
from penstock.producers.enqueue.override import Override
from penstock.producers.handles.handles import AsyncJobHandle
from penstock.producers.senders import AsyncSender, open_async_sender
from penstock.producers.traces.sending import sending
from penstock.schemas.jobs.durations import Duration

if TYPE_CHECKING:
    from penstock.schemas.jobs.job import Job

T = TypeVar("T")


class AsyncProducer(BaseProducer[AsyncSender, AsyncJobHandle]):
    """`Producer` for coroutines; may be used in several event loops."""

    _handle_class = AsyncJobHandle

    def gather(self) -> None:
        """From now on send together what coroutines of one event loop enqueue at a time; for a process that does little
        else. A job that comes alone does not wait."""
        from penstock.producers.senders.batching import BatchingSender

        batching = BatchingSender(self._own_sender, self._max_lengths)
        if self._sender is self._own_sender:
            self._sender = batching
        self._own_sender = batching

    async def enqueue(self, job: Job, **options: Unpack[EnqueueOptions]) -> AsyncJobHandle:
        """See `Producer.enqueue`."""
        envelope, policy = self._builder.build(job, options)
        if policy is None:  # most jobs; a generator takes half a microsecond more
            envelopes = (envelope,)
            with sending(envelopes):
                await self._sender.send(envelopes)
            return self._handle_of(envelope)
        [handle] = await self._run(self._enqueue_unique([(envelope, policy)]))
        return handle

    async def enqueue_many(self, jobs: Iterable[Job]) -> list[AsyncJobHandle]:
        """See `Producer.enqueue_many`."""
        return await self._run(self._enqueue_many(jobs))

    async def enqueue_each(
        self, items: Iterable[tuple[Job, Mapping[str, Any]]]
    ) -> list[AsyncJobHandle | PenstockError]:
        """Send many, each with options of its own. A job that is refused does not stop the others.

        Arguments:
            items: jobs, each with the options of `enqueue`.

        Returns for each, in order, its handle, or why it was not sent; after BrokerUnavailable it may have been.
        """
        return await self._run(self._enqueue_each(items))

    async def cancel(self, *, key: str, kind: str | None = None, tenant: str | None = None) -> list[str]:
        """See `Producer.cancel`."""
        import asyncio

        return await asyncio.to_thread(self._cancel, key, kind, tenant)

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

        return await asyncio.to_thread(self._reschedule, key, run_at, delay, kind, tenant)

    async def ping(self) -> None:
        """See `Producer.ping`."""
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

    def _open_sender(self, url: str, **options: Any) -> AsyncSender:
        return open_async_sender(url, **options)

    def _sender_of(self, override: Override) -> AsyncSender:
        return override.async_sender

    async def _run(self, call: Call[T]) -> T:
        try:
            step = next(call)
            while True:
                result = None
                try:
                    if callable(step):
                        import asyncio  # a third of the time that importing producers would take

                        result = await asyncio.to_thread(step)
                    else:
                        await self._sender.send(step)
                except PenstockError as error:
                    step = call.throw(error)
                else:
                    step = call.send(result)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
