"""Resources: values that handlers need and a worker opens once, such as a mail connection.

A provider is a generator that yields the open resource; it is found by the type it yields:

    @provides
    def open_mailer(settings: Settings) -> Iterator[Mailer]:
        with Mailer(settings.smtp_url) as mailer:
            yield mailer

A handler asks for it with an annotated parameter (`mailer: Mailer`). `async def` providers yield likewise.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any, TypeVar, get_args, get_type_hints

from penstock.config.errors import KindError
from penstock.config.settings import Settings

Provider = Callable[[Settings], Iterator[Any]] | Callable[[Settings], AsyncIterator[Any]]
P = TypeVar("P", bound=Callable[..., Any])

_providers: dict[type, Provider] = {}
_overrides: dict[type, Any] = {}


def provides(provider: P) -> P:
    """Register a generator function `(settings) -> Iterator[T]` or its async form as the provider of `T`.

    Raises:
        KindError: it is not a generator function, or its return annotation does not name the class that it yields.
    """
    if not (inspect.isgeneratorfunction(provider) or inspect.isasyncgenfunction(provider)):
        raise KindError(f"{provider.__qualname__}: a provider must be a generator function that yields the resource")
    yielded = get_args(get_type_hints(provider).get("return"))
    if not yielded or not isinstance(yielded[0], type):
        raise KindError(f"{provider.__qualname__}: annotate it -> Iterator[T] with the class it yields")
    _providers[yielded[0]] = provider
    return provider


def is_provided(wanted: object) -> bool:
    return wanted in _providers or wanted in _overrides


@contextmanager
def override(wanted: type, value: Any) -> Iterator[None]:
    """Inject `value` for a type while the block runs; for tests. Worker processes started inside do not see it."""
    before = _overrides.copy()
    _overrides[wanted] = value
    try:
        yield
    finally:
        _overrides.clear()
        _overrides.update(before)


class Resources:
    """The open resources of one worker process. Each is opened on first use and closed, in reverse, at the end."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._opened: dict[type, Any] = {}
        self._stack = AsyncExitStack()
        self._lock = asyncio.Lock()

    async def get(self, wanted: type) -> Any:
        """The resource of a type, opened if need be.

        Raises:
            LookupError: nothing provides it. Boot has checked for that, so only an override that ended does this.
        """
        if wanted in _overrides:
            return _overrides[wanted]
        if wanted in self._opened:
            return self._opened[wanted]
        async with self._lock:
            if wanted not in self._opened:
                self._opened[wanted] = await self._open(wanted)
        return self._opened[wanted]

    async def _open(self, wanted: type) -> Any:
        if wanted is Settings:
            return self._settings
        provider = _providers.get(wanted)
        if provider is None:
            raise LookupError(f"nothing provides {wanted.__qualname__}; declare it with @provides")
        if inspect.isasyncgenfunction(provider):
            return await self._stack.enter_async_context(asynccontextmanager(provider)(self._settings))
        manager = contextmanager(provider)(self._settings)  # type: ignore[arg-type]  # one of two generator forms
        value = await asyncio.to_thread(manager.__enter__)
        self._stack.push(manager.__exit__)
        return value

    async def close(self) -> None:
        self._opened.clear()
        await self._stack.aclose()
