"""`@handles`, and the registry of handlers by kind."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, get_type_hints

from pydantic import TypeAdapter

from penstock.config.errors import KindError
from penstock.config.settings import Settings
from penstock.schemas.jobs.job import Job
from penstock.schemas.jobs.kind import Kind, Registry, registry
from penstock.workers.handlers.context import Context
from penstock.workers.handlers.resources import is_provided

F = TypeVar("F", bound=Callable[..., Any])
Mode = Literal["async", "thread", "child"]


@dataclass(frozen=True)
class Handler:
    """A function, and the parameters of its signature.

    Attributes:
        mode: `async` on the worker's loop, `thread`, or `child`, a process of its own.
        context: the name of the parameter that takes the Context, if any.
        resources: parameter names and the types to inject.
        memory_bytes: the cap of a child's address space.
        result: serialises what the function returns.
    """

    kind: Kind
    function: Callable[..., Any]
    mode: Mode
    context: str | None
    resources: dict[str, type]
    memory_bytes: int | None = None
    result: TypeAdapter[Any] = field(default_factory=lambda: TypeAdapter(Any), compare=False)

    @property
    def source(self) -> str:
        """`file:line` of the function, for messages."""
        code = inspect.unwrap(self.function).__code__
        return f"{code.co_filename}:{code.co_firstlineno}"


class Handlers:
    """Handlers by kind."""

    def __init__(self) -> None:
        self._by_kind: dict[str, Handler] = {}

    def add(self, handler: Handler) -> None:
        """Raises KindError where the kind has a handler already; a reload of the same function replaces it."""
        other = self._by_kind.get(handler.kind.name)
        if other is not None and _path(other.function) != _path(handler.function):
            raise KindError(
                f"kind {handler.kind.name!r} has two handlers: {other.source} and {handler.source}; remove one"
            )
        self._by_kind[handler.kind.name] = handler

    def find(self, kind: Kind) -> Handler | None:
        return self._by_kind.get(kind.name)

    def discard(self, kind: Kind) -> None:
        """Forget the handler of a kind; for tests."""
        self._by_kind.pop(kind.name, None)

    def __iter__(self) -> Iterator[Handler]:
        return iter(self._by_kind.values())

    def check(self, registry: Registry = registry) -> None:
        """Refuse handlers that could only fail later, when a worker boots.

        Raises:
            KindError: no job class has a handler's kind, or it asks for something nothing provides; names its file.
        """
        for handler in self:
            if registry.find(handler.kind.name) is None:
                raise KindError(
                    f"{handler.source}: the handler of {handler.kind.name!r} would never run: no job class that is "
                    "registered has this kind; remove the handler, or declare the kind"
                )
            for name, wanted in handler.resources.items():
                if wanted is not Settings and not is_provided(wanted):
                    raise KindError(
                        f"{handler.source}: parameter {name!r} of the handler of {handler.kind.name!r} asks for "
                        f"{wanted.__qualname__}, which nothing provides; declare it with @provides"
                    )


handlers = Handlers()
"""The handlers of this process. Importing a handler's module adds it."""


def handles(job: type[Job], *, isolate: bool = False, memory_bytes: int | None = None) -> Callable[[F], F]:
    """Declare a function or coroutine as the handler of a kind.

        @handles(SendInvoice)
        async def send_invoice(job: SendInvoice, ctx: Context, mailer: Mailer) -> Sent: ...

    The first parameter takes the job. A parameter annotated `Context` takes the context; one annotated with a
    resource's class takes the resource. `async def` runs on the worker's loop, `def` in a thread.

    Arguments:
        isolate: run each attempt of a `def` in a child process, which can be killed; job and result are passed as
            JSON.
        memory_bytes: cap of the child's memory; needs `isolate`.

    Raises:
        KindError: the class has no kind, the kind has a handler, or the signature cannot be served.
    """

    def declare(function: F) -> F:
        handlers.add(_handler(job, function, isolate, memory_bytes))
        return function

    return declare


def _handler(job: type[Job], function: Callable[..., Any], isolate: bool, memory_bytes: int | None) -> Handler:
    code = inspect.unwrap(function).__code__
    label = f"{code.co_filename}:{code.co_firstlineno}: handler {function.__qualname__} of {job.__qualname__}"
    if not issubclass(job, Job) or job.__kind__ is None:
        raise KindError(f'{label}, which has no kind; declare it as class {job.__name__}(Job, kind="…")')
    is_async = inspect.iscoroutinefunction(function)
    if isolate and is_async:
        raise KindError(f"{label}: isolate=True takes a plain function, not a coroutine")
    if memory_bytes is not None and not isolate:
        raise KindError(f"{label}: memory_bytes needs isolate=True")
    hints = get_type_hints(function)
    parameters = list(inspect.signature(function).parameters.values())
    if not parameters or parameters[0].kind not in (
        parameters[0].POSITIONAL_ONLY,
        parameters[0].POSITIONAL_OR_KEYWORD,
    ):
        raise KindError(f"{label}: its first parameter takes the job")
    context: str | None = None
    resources: dict[str, type] = {}
    for parameter in parameters[1:]:
        wanted = hints.get(parameter.name)
        if wanted is Context:
            context = parameter.name
        elif parameter.default is not parameter.empty:
            continue
        elif isinstance(wanted, type):
            resources[parameter.name] = wanted
        else:
            raise KindError(f"{label}: annotate parameter {parameter.name!r} with Context or the class of a resource")
    returned = hints.get("return", Any)
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(Any if returned is type(None) else returned)
    except Exception:  # a return annotation such as `Sent | Snooze` may hold what pydantic has no schema for
        adapter = TypeAdapter(Any)
    mode: Mode = "child" if isolate else "async" if is_async else "thread"
    return Handler(job.kind(), function, mode, context, resources, memory_bytes, adapter)


def _path(function: Callable[..., Any]) -> str:
    return f"{function.__module__}.{function.__qualname__}"
