"""`ctx.once(key)`: an effect outside the database that must not happen twice.

The ledger has the effect on record before it is called, and again once it has happened. In between only its provider
knows whether it happened: after a crash the provider is asked, or a person decides. It is never just called again.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import pydantic
import pydantic_core

from penstock.ledger import effects as table
from penstock.schemas.wire.payloads import result_json
from penstock.workers.handlers.returns import InDoubt, NotDone

if TYPE_CHECKING:
    from penstock.ledger.sql.database import Database
    from penstock.workers.executor.runtime.runtime import Runtime
    from penstock.workers.handlers.context import Context

_ANYTHING = pydantic.TypeAdapter(Any)
T = TypeVar("T")
_LONGEST_RESULT = 4 * 1024 * 1024
"""Characters of the JSON of an effect's result."""
Work = Callable[[], Any]
Call = Callable[[bool, Work], Awaitable[Any]]
"""Makes a call; the flag tells whether it goes to the ledger."""


class Records(Protocol):
    """The records of the effects of one attempt's job."""

    def begin(self, key: str, again: bool, at: datetime) -> table.EarlierEffect | None: ...

    def confirm(self, key: str, result: str | None) -> None: ...

    def withdraw(self, key: str) -> None: ...


class Once:
    """An effect in a plain function's attempt. `ctx.once` makes it.

    Attributes:
        effect_id: the same for a job and key however often it is run: an idempotency key for the provider.
    """

    def __init__(self, context: Context, key: str, records: Records, write: Callable[[Work], Any]) -> None:
        self.key, self.effect_id = key, table.effect_id(context.job_id, key)
        self._context, self._records, self._write = context, records, write

    def run(self, effect: Callable[[str], T], *, ask: Callable[[str], T | None] | None = None) -> T:
        """See `Context.once`."""

        async def call(in_ledger: bool, work: Work) -> Any:
            if in_ledger:
                return self._write(work)
            if inspect.iscoroutine(value := work()):
                value.close()
                raise NotDone(f"ctx.once({self.key!r}): a plain handler's effect must be a plain function too")
            return value

        try:
            # `call` awaits nothing, so the coroutine runs to its end here, without a loop.
            _run(self._context, self.key, self.effect_id, self._records, effect, ask, call).send(None)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        raise AssertionError("the effect of a plain function has waited")


class AsyncOnce:
    """An effect in a coroutine's attempt; see `Once`.

    Attributes:
        records, write: the effect's records, and how to wait for a write to them.
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

        async def call(in_ledger: bool, work: Work) -> Any:
            if in_ledger:
                return await self.write(work)
            return await value if inspect.isawaitable(value := work()) else value

        value: T = await _run(self._context, self.key, self.effect_id, self.records, effect, ask, call)
        return value


async def _run(
    context: Context,
    key: str,
    effect_id: str,
    records: Records,
    effect: Callable[[str], Any],
    ask: Callable[[str], Any] | None,
    call: Call,
) -> Any:
    """Run an effect, the same way for coroutines and plain functions."""
    with context.running_once(key):
        record = await _begin(records, key, False, call)
        if record is not None and not record.done:
            if ask is None:
                raise InDoubt(key, effect_id, record.begun_at)
            answer = await call(False, lambda: ask(effect_id))
            if answer is not None:
                text, value = _as_json(key, answer)
                await call(True, lambda: records.confirm(key, text))
                return value
            # Another worker may have taken the job over in the meantime, and even called the effect.
            record = await _begin(records, key, True, call)
        if record is not None:
            return None if record.result is None else pydantic_core.from_json(record.result)
        try:
            result = await call(False, lambda: effect(effect_id))
        except NotDone:
            await call(True, lambda: records.withdraw(key))
            raise
        try:
            text, value = _as_json(key, result)
        except TypeError:
            await call(True, lambda: records.confirm(key, None))  # it happened, whatever it returned
            raise
        await call(True, lambda: records.confirm(key, text))
        return value


async def _begin(records: Records, key: str, again: bool, call: Call) -> Any:
    started, at = False, datetime.now(UTC)

    def begin() -> table.EarlierEffect | None:
        nonlocal started
        record = records.begin(key, again, at)
        started = record is None
        return record

    try:
        return await call(True, begin)
    except asyncio.CancelledError:
        if started:
            await call(True, lambda: records.withdraw(key))  # it is not called any more
        raise


def _as_json(key: str, result: Any) -> tuple[str, Any]:
    """The result as the ledger keeps it, and as the handler gets it, the first time too."""
    try:
        text = result_json(_ANYTHING, result)
    except Exception as error:  # whatever a value raises
        raise TypeError(
            f"ctx.once({key!r}): its result {type(result).__name__} is not a JSON value: {error}"
        ) from error
    if len(text) > _LONGEST_RESULT:
        raise TypeError(f"ctx.once({key!r}): its result has {len(text):,} characters of JSON, over {_LONGEST_RESULT:,}")
    return text, pydantic_core.from_json(text)


class Effects:
    """Opens the effects of a worker's attempts. They are written from its one thread for the ledger, which waits
    outages out."""

    def __init__(self, runtime: Runtime) -> None:
        self._database, self._io = runtime.database, runtime.io
        self._tasks, self._loop = runtime.tasks, runtime.loop

    def open(self, context: Context, key: str) -> Once:
        records = _LedgerRecords(self._database, context)
        return Once(context, key, records, lambda call: self._loop.run(self._io.ledger(call)))

    def open_async(self, context: Context, key: str) -> AsyncOnce:
        return AsyncOnce(context, key, _LedgerRecords(self._database, context), self._write)

    async def _write(self, call: Callable[[], T]) -> T | None:
        """Write from the worker's loop. A cancellation waits until it is written."""

        async def call_ledger() -> tuple[T | None, Exception | None]:
            try:
                return await self._io.ledger(call), None
            except Exception as error:  # raised in the handler, not logged by the loop
                return None, error

        writing = self._tasks.spawn(call_ledger())
        try:
            value, error = await asyncio.shield(writing)
        except asyncio.CancelledError:
            await asyncio.wait({writing})
            raise
        if error is not None:
            raise error
        return value


class _LedgerRecords:
    def __init__(self, database: Database, context: Context) -> None:
        self._database, self._context = database, context

    def begin(self, key: str, again: bool, at: datetime) -> table.EarlierEffect | None:
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
