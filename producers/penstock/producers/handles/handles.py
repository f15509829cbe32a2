"""Handles of sent jobs. They read the ledger, so they need to know its database."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any, TypeVar, overload

from penstock.config.errors import InvalidResult, JobFailed, NotTracked, WaitTimeout
from penstock.producers.handles.connections import LedgerConnections
from penstock.schemas.jobs.kind import registry
from penstock.schemas.states import State

if TYPE_CHECKING:
    from datetime import datetime

    from penstock.ledger.queries.status import JobStatus
    from penstock.producers.handles.waiters import AnyWaiter, AsyncWaiter, Waiter
    from penstock.schemas.jobs.durations import Duration

T = TypeVar("T")

_FIRST_LOOK, _LONGEST_LOOK = 0.01, 0.25
"""Seconds between looks at the ledger where no changes are pushed."""
_LOOK_WHEN_PUSHED = 1.0
"""Seconds between looks where they are: one may be lost, and changes by the dispatcher are not pushed."""


class _WatchProgress:
    """State of a watch, for threads and coroutines alike: which statuses are changes, and when to look next."""

    def __init__(self, id: str, kind: str, timeout: float | None) -> None:
        self._name, self._timeout = f"job {id} ({kind})" if kind else f"job {id}", timeout
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._pause = _FIRST_LOOK
        self._last: JobStatus | None = None
        declared = registry.find(kind)
        if declared is not None and not declared.track:
            raise NotTracked(
                f"{self._name}: its kind has track=False, so nothing records that it succeeded and waiting might never "
                "end; give the kind track=True, or ask status() for its failures"
            )

    def is_change(self, status: JobStatus) -> bool:
        """Whether its state or progress differs from the last one."""
        last, self._last = self._last, status
        return last is None or _visible_part(last) != _visible_part(status)

    def pause(self, pushed: bool) -> float:
        """Seconds until the next look, if nothing is heard before. Raises WaitTimeout."""
        pause = _LOOK_WHEN_PUSHED
        if not pushed:
            pause, self._pause = self._pause, min(self._pause * 1.5, _LONGEST_LOOK)
        if self._deadline is None:
            return pause
        if (left := self._deadline - time.monotonic()) <= 0:
            state = "unseen" if self._last is None else self._last.state
            raise WaitTimeout(f"{self._name} is {state} after {self._timeout:g} s")
        return min(pause, left)


def _visible_part(status: JobStatus) -> tuple[object, ...]:
    return status.state, status.attempt, status.failures, status.progress


class JobHandle:
    """Handle of a sent job.

    Attributes:
        id: its id.
        kind, queue: as it was sent.
        created: False where an earlier job holds the key, and takes the place of the unique one that was enqueued.
    """

    created = True

    def __init__(self, id: str, kind: str, queue: str, ledger: LedgerConnections) -> None:
        self.id, self.kind, self.queue = id, kind, queue
        self._ledger = ledger

    def status(self) -> JobStatus:
        """The job as the ledger has it; `queued` while no worker has claimed it.

        A job of a kind with `track=False` stays `queued` here unless it fails.

        Raises:
            LedgerUnavailable: the database cannot be reached.
        """
        return self._look()

    def _look(self, waiter: AnyWaiter | None = None) -> JobStatus:
        from penstock.ledger.queries.status import JobStatus, read_status

        status = read_status(self._ledger.open(waiter), self.id, open_storage=self._ledger.open_storage)
        return status or JobStatus(self.id, self.kind, self.queue, State.QUEUED)

    def watch(self, timeout: float | None = None) -> Iterator[JobStatus]:
        """Yield the job's status now and whenever its state or progress has changed, until it has ended.

        Where the broker is Redis, workers push changes; elsewhere, and where a push is lost, the ledger is looked at.
        States that follow each other faster than that are not all seen; the last one always is.

        Arguments:
            timeout: seconds for all of it; None: for ever.

        Raises:
            WaitTimeout: it has not ended in time; it goes on.
            NotTracked: at once, for a kind with `track=False`.
            WatchClosed: the producer was closed meanwhile.
        """
        return self._watch(_WatchProgress(self.id, self.kind, timeout))

    def _watch(self, progress: _WatchProgress) -> Iterator[JobStatus]:
        subscriptions = self._ledger.subscriptions()
        waiter: Waiter | None = None
        try:
            while True:
                status = self._look(waiter)
                if progress.is_change(status):
                    yield status
                if status.final:
                    return
                if waiter is None:  # most often one look was enough, and this does not come to pass
                    waiter = subscriptions.subscribe(self.id)
                waiter.wait(progress.pause(waiter.live))
        finally:
            if waiter is not None:
                subscriptions.unsubscribe(waiter)

    def wait(self, timeout: float | None = None) -> JobStatus:
        """Wait until the job has ended, whichever way, and return its status.

        Arguments:
            timeout: seconds; None: for ever.

        Raises:
            WaitTimeout, NotTracked, WatchClosed: see `watch`.
        """
        for status in self.watch(timeout):
            last = status
        return last

    @overload
    def result(self, timeout: float | None = None) -> Any: ...
    @overload
    def result(self, timeout: float | None = None, *, as_type: type[T]) -> T: ...
    def result(self, timeout: float | None = None, *, as_type: Any = None) -> Any:
        """Wait, and return what the handler returned.

        Arguments:
            as_type: the type to make it of, such as the handler's model; without one it comes as JSON values.

        Raises:
            JobFailed: the job ended without success; InvalidResult: the result is not a valid `as_type`.
            StorageError: a large result cannot be read from the storage (ObjectNotFound: it is gone).
            WaitTimeout, NotTracked, WatchClosed: see `watch`.
        """
        return result_of(self.wait(timeout), as_type)

    def cancel(self) -> State:
        """Cancel the job: for certain before it runs, through its worker while it runs. Returns its current state.

        Raises:
            InvalidState: it has ended already.
        """
        from penstock.ledger.transitions.cancel import request_cancel

        return request_cancel(self._ledger.open(), self.id, kind=self.kind or None)

    def reschedule(self, *, run_at: datetime | None = None, delay: Duration | None = None) -> None:
        """Move the due time of the job while it waits for it in the ledger.

        Arguments:
            run_at, delay: one of them, as in `enqueue`.

        Raises:
            InvalidState: it does not wait for its time, or would expire before; JobNotFound: it is not recorded.
        """
        from penstock.ledger.transitions.reschedule import reschedule
        from penstock.schemas.jobs.durations import resolve_run_at

        reschedule(self._ledger.open(), self.id, resolve_run_at(run_at, delay))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.kind} {self.id}>"


class AsyncJobHandle:
    """`JobHandle` for coroutines; each call works in a thread."""

    created = True

    def __init__(self, id: str, kind: str, queue: str, ledger: LedgerConnections) -> None:
        self.id, self.kind, self.queue = id, kind, queue
        self._ledger = ledger
        self._handle = JobHandle(id, kind, queue, ledger)

    async def status(self) -> JobStatus:
        """See `JobHandle.status`; a large result has been read from the storage."""
        return await self._status()

    async def _status(self, waiter: AsyncWaiter | None = None) -> JobStatus:
        import asyncio  # a third of the time that importing producers would take

        return await asyncio.to_thread(self._look, waiter)

    def _look(self, waiter: AsyncWaiter | None) -> JobStatus:
        status = self._handle._look(waiter)
        if status.stored is not None:
            status.stored.fetch()  # here, as `status.result` is read on the loop
        return status

    def watch(self, timeout: float | None = None) -> AsyncIterator[JobStatus]:
        """See `JobHandle.watch`; between looks no thread is held."""
        return self._watch(_WatchProgress(self.id, self.kind, timeout))

    async def _watch(self, progress: _WatchProgress) -> AsyncIterator[JobStatus]:
        subscriptions = self._ledger.async_subscriptions()
        waiter: AsyncWaiter | None = None
        try:
            while True:
                status = await self._status(waiter)
                if progress.is_change(status):
                    yield status
                if status.final:
                    return
                if waiter is None:
                    waiter = subscriptions.subscribe(self.id)
                await waiter.wait(progress.pause(waiter.live))
        finally:
            if waiter is not None:
                subscriptions.unsubscribe(waiter)

    async def wait(self, timeout: float | None = None) -> JobStatus:
        """See `JobHandle.wait`."""
        async for status in self.watch(timeout):
            last = status
        return last

    @overload
    async def result(self, timeout: float | None = None) -> Any: ...
    @overload
    async def result(self, timeout: float | None = None, *, as_type: type[T]) -> T: ...
    async def result(self, timeout: float | None = None, *, as_type: Any = None) -> Any:
        """See `JobHandle.result`."""
        return result_of(await self.wait(timeout), as_type)

    async def cancel(self) -> State:
        """See `JobHandle.cancel`."""
        import asyncio

        return await asyncio.to_thread(self._handle.cancel)

    async def reschedule(self, *, run_at: datetime | None = None, delay: Duration | None = None) -> None:
        """See `JobHandle.reschedule`."""
        import asyncio

        await asyncio.to_thread(self._handle.reschedule, run_at=run_at, delay=delay)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.kind} {self.id}>"


def result_of(status: JobStatus, as_type: Any = None) -> Any:
    """The result of a job that has ended, as JSON values or as `as_type`.

    Raises:
        JobFailed: it has none; InvalidResult: it is of another type; StorageError: it is in storage and cannot be read.
    """
    if status.state != State.SUCCEEDED:
        raise JobFailed(status.id, status.state, status.error)
    if as_type is None:
        return status.result
    import json

    from pydantic import TypeAdapter, ValidationError

    from penstock.schemas.wire.codec import explain

    try:
        # As JSON, so that what JSON has no type for, such as times, is read where a strict model asks for it.
        return TypeAdapter(as_type).validate_json(json.dumps(status.result))
    except ValidationError as error:
        name = getattr(as_type, "__name__", as_type)
        raise InvalidResult(f"the result of job {status.id} is not a valid {name}: {explain(error)}") from error
