"""`ctx.once(key)`: an effect outside the database that must not happen twice.

The ledger learns of it before it is called and again when it has happened. In between nobody but its provider can know:
what is found there after a crash is asked about, or left to a person, and never just called again.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Generator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import pydantic_core

from penstock.ledger import effects as table
from penstock.workers.handlers.returns import InDoubt, NotDone

if TYPE_CHECKING:
    from penstock.ledger.sql.database import Database
    from penstock.workers.executor.io_threads import Offload
    from penstock.workers.executor.loop_thread import LoopThread, Tasks
    from penstock.workers.handlers.context import Context

T = TypeVar("T")
Work = Callable[[], Any]
Steps = Generator[tuple[bool, Work], Any, Any]
"""What to call next, and whether it writes to the ledger; the answer is sent back in."""


class Records(Protocol):
    """What is kept of the effects of one attempt's job."""

    def begin(self, key: str, again: bool, at: datetime) -> table.Found | None: ...

    def confirm(self, key: str, result: str | None) -> None: ...

    def withdraw(self, key: str) -> None: ...


class Once:
    """One effect of a plain function's attempt. `ctx.once` makes it.

    Attributes:
        effect_id: the same for a job and key however often it is run: an idempotency key for the provider.
    """

    def __init__(self, context: Context, key: str, records: Records, write: Callable[[Work], Any]) -> None:
        self.key, self.effect_id = key, table.effect_id(context.job_id, key)
        self._context, self._records, self._write = context, records, write

    def run(self, effect: Callable[[str], T], *, ask: Callable[[str], T | None] | None = None) -> T:
        """See `Context.once`."""
        steps = _steps(self._context, self.key, self.effect_id, self._records, effect, ask)

        def do(in_ledger: bool, work: Work) -> Any:
            if in_ledger:
                return self._write(work)
            if inspect.iscoroutine(value := work()):
                value.close()
                raise NotDone(f"ctx.once({self.key!r}): a plain handler's effect must be a plain function too")
            return value

        try:
            step = next(steps)
            while True:
                try:
                    value = do(*step)
                except BaseException as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(value)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


class AsyncOnce:
    """One effect of a coroutine's attempt; see `Once`.

    Attributes:
        records, write: what is kept of it, and who waits for that.
    """

    def __init__(self, context: Context, key: str, records: Records, write: Callable[[Work], Awaitable[Any]]) -> None:
        self.key, self.effect_id = key, table.effect_id(context.job_id, key)
        self.records, self.write = records, write
        self._context = context

    async def run(
        self,
        effect: Callable[[str], Awaitable[T] | T],
        *,
        ask: Callable[[str], Awaitable[T | None] | T | None] | None = None,
    ) -> T:
        """See `Context.once`."""
        steps = _steps(self._context, self.key, self.effect_id, self.records, effect, ask)

        async def do(in_ledger: bool, work: Work) -> Any:
            if in_ledger:
                return await self.write(work)
            return await value if inspect.isawaitable(value := work()) else value

        try:
            step = next(steps)
            while True:
                try:
                    value = await do(*step)
                except BaseException as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(value)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


def _steps(
    context: Context,
    key: str,
    effect_id: str,
    records: Records,
    effect: Callable[[str], Any],
    ask: Callable[[str], Any] | None,
) -> Steps:
    """The way of an effect, for coroutines and plain functions alike."""
    with context.running_once(key):
        found = yield from _begin(records, key, False)
        if found is not None and not found.done:
            if ask is None:
                raise InDoubt(key, effect_id, found.begun_at)
            answer = yield False, lambda: ask(effect_id)
            if answer is not None:
                text, value = _as_json(key, answer)
                yield True, lambda: records.confirm(key, text)
                return value
            # Meanwhile another worker may have taken the job over, and even called the effect.
            found = yield from _begin(records, key, True)
        if found is not None:
            return None if found.result is None else pydantic_core.from_json(found.result)
        try:
            result = yield False, lambda: effect(effect_id)
        except NotDone:
            yield True, lambda: records.withdraw(key)
            raise
        try:
            text, value = _as_json(key, result)
        except TypeError:
            yield True, lambda: records.confirm(key, None)  # it happened, whatever it answers
            raise
        yield True, lambda: records.confirm(key, text)
        return value


def _begin(records: Records, key: str, again: bool) -> Steps:
    begun, at = False, datetime.now(UTC)

    def begin() -> table.Found | None:
        nonlocal begun
        found = records.begin(key, again, at)
        begun = found is None
        return found

    try:
        return (yield True, begin)
    except asyncio.CancelledError:
        if begun:
            yield True, lambda: records.withdraw(key)  # it is not called any more
        raise


def _as_json(key: str, result: Any) -> tuple[str, Any]:
    """The result as it is kept, and as it is given to the handler: the first time no other than ever after."""
    try:
        text = pydantic_core.to_json(result).decode()
    except pydantic_core.PydanticSerializationError as error:
        raise TypeError(f"ctx.once({key!r}): its result {type(result).__name__} is no JSON value: {error}") from error
    return text, pydantic_core.from_json(text)


class Effects:
    """Opens the effects of a worker's attempts. They are written from its one thread for the ledger, which waits
    outages out."""

    def __init__(self, database: Database, offload: Offload, tasks: Tasks, loop: LoopThread) -> None:
        self._database, self._offload, self._tasks, self._loop = database, offload, tasks, loop

    def open(self, context: Context, key: str) -> Once:
        return Once(
            context, key, _Ledger(self._database, context), lambda work: self._loop.run(self._offload.ledger(work))
        )

    def open_async(self, context: Context, key: str) -> AsyncOnce:
        return AsyncOnce(context, key, _Ledger(self._database, context), self._write)

    async def _write(self, work: Callable[[], T]) -> T | None:
        """On the worker's loop. A cancellation waits until it is written."""

        async def write() -> tuple[T | None, Exception | None]:
            try:
                return await self._offload.ledger(work), None
            except Exception as error:  # the handler's to hear, not the loop's
                return None, error

        writing = self._tasks.spawn(write())
        try:
            value, error = await asyncio.shield(writing)
        except asyncio.CancelledError:
            await asyncio.wait({writing})
            raise
        if error is not None:
            raise error
        return value


class _Ledger:
    def __init__(self, database: Database, context: Context) -> None:
        self._database, self._context = database, context

    def begin(self, key: str, again: bool, at: datetime) -> table.Found | None:
        session = self._context.opened_session
        if self._database.dialect == "sqlite" and session is not None and session.in_transaction():
            # Nothing else can be written then, so this would wait for the handler, which waits for this.
            raise RuntimeError(
                f"ctx.once({key!r}) after ctx.session: on SQLite the session has the only lock; swap them"
            )
        return table.begin(self._database, self._context.job_id, self._context.fence, key, again=again, at=at)

    def confirm(self, key: str, result: str | None) -> None:
        table.confirm(self._database, self._context.job_id, self._context.fence, key, result)

    def withdraw(self, key: str) -> None:
        table.withdraw(self._database, self._context.job_id, self._context.fence, key)
