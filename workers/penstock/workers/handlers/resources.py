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
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
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


def is_provided(resource: object) -> bool:
    return resource in _providers or resource in _overrides


def is_overridden(resource: object) -> bool:
    return resource in _overrides


def provider_modules() -> set[str]:
    """The modules that declare the providers of this process."""
    return {provider.__module__ for provider in _providers.values()}


@contextmanager
def override(resource: type, value: Any) -> Iterator[None]:
    """Inject `value` for a type while the block runs; for tests. Worker processes started inside do not see it."""
    before = _overrides.copy()
    _overrides[resource] = value
    try:
        yield
    finally:
        _overrides.clear()
        _overrides.update(before)


class Resources:
    """The open resources of one worker process. Each is opened on first use and closed, in reverse, at the end.

    Arguments:
        others: resources by type that are open before and stay so.
    """

    def __init__(self, settings: Settings, others: Mapping[type, Any]) -> None:
        self._settings = settings
        self._opened: dict[type, Any] = {Settings: settings, **others}
        self._stack = AsyncExitStack()
        self._lock = asyncio.Lock()

    async def get(self, resource: type) -> Any:
        """The resource of a type, opened if need be.

        Raises:
            LookupError: nothing provides it. Boot has checked for that, so only an override that ended does this.
        """
        if resource in _overrides:
            return _overrides[resource]
        if resource in self._opened:
            return self._opened[resource]
        async with self._lock:
            if resource not in self._opened:
                self._opened[resource] = await self._open(resource)
        return self._opened[resource]

    async def _open(self, resource: type) -> Any:
        provider = _provider(resource)
        if inspect.isasyncgenfunction(provider):
            return await self._stack.enter_async_context(asynccontextmanager(provider)(self._settings))
        manager = contextmanager(provider)(self._settings)  # type: ignore[arg-type]  # one of two generator forms
        value = await asyncio.to_thread(manager.__enter__)
        self._stack.push(manager.__exit__)
        return value

    async def close(self) -> None:
        self._opened.clear()
        await self._stack.aclose()


class LocalResources:
    """The open resources of a process that runs one plain function, in whose thread they are opened and closed.

    No event loop runs around the function. Asynchronous providers have a loop of their own, which runs while they open
    and close.
    """

    def __init__(self, settings: Settings) -> None:
        self._opened: dict[type, Any] = {Settings: settings}
        self._settings = settings
        self._stack = ExitStack()
        self._runner: asyncio.Runner | None = None

    def get(self, resource: type) -> Any:
        """The resource of a type, opened if need be. Raises LookupError where nothing provides it."""
        if resource not in self._opened:
            self._opened[resource] = self._open(_provider(resource))
        return self._opened[resource]

    def _open(self, provider: Provider) -> Any:
        if not inspect.isasyncgenfunction(provider):
            return self._stack.enter_context(contextmanager(provider)(self._settings))  # type: ignore[arg-type]
        if self._runner is None:
            self._runner = self._stack.enter_context(asyncio.Runner())
        run, manager = self._runner.run, asynccontextmanager(provider)(self._settings)
        value = run(manager.__aenter__())
        self._stack.callback(lambda: run(manager.__aexit__(None, None, None)))
        return value

    def close(self) -> None:
        """Close them, in reverse."""
        self._stack.close()


def _provider(resource: type) -> Provider:
    """The provider of a type. Raises LookupError."""
    if (provider := _providers.get(resource)) is None:
        raise LookupError(f"nothing provides {resource.__qualname__}; declare it with @provides")
    return provider
