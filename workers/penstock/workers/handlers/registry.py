"""`@handles`, and the registry of handlers by kind."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from types import UnionType
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter

from penstock.config.errors import KindError
from penstock.config.settings import Settings
from penstock.schemas.jobs.job import Job
from penstock.schemas.jobs.kind import Kind, Registry, registry
from penstock.schemas.jobs.sensitive import holds, shapes_of
from penstock.workers.handlers.context import Context
from penstock.workers.handlers.resources import is_provided
from penstock.workers.handlers.returns import Discard, SoftTimeLimitExceeded

J = TypeVar("J", bound=Job)
P = ParamSpec("P")
R = TypeVar("R")
Mode = Literal["async", "thread", "child", "process"]
Pool = Literal["threads", "processes"]


@dataclass(frozen=True)
class Handler:
    """A function, and the parameters of its signature.

    Attributes:
        mode: `async` on the worker's loop, `thread`, `process`, one of the worker's pool, or `child`, a process of its
            own.
        context: the name of the parameter that takes the Context, if any.
        resources: parameter names and the types to inject.
        memory_bytes: the cap of a child's address space.
        result: serialises what the function returns.
        pool: the one that its declaration names; None: the worker's.
        soft_error: the class of the error at the soft limit.
        termination: the class of the error at a SIGTERM in a process of the pool; None: `Terminated`, its base.
        refuse: called with the job in the worker's own process, on its loop, before an attempt; a `Discard` is the
            outcome then, and the function is not called. None: nothing is refused.
        missing: called with the job, the settings and the tenant before a claim; its text says what this worker lacks
            to run the job, which is held back for other workers. None: it lacks nothing.
    """

    kind: Kind
    function: Callable[..., Any]
    mode: Mode
    context: str | None
    resources: dict[str, type]
    memory_bytes: int | None = None
    result: TypeAdapter[Any] = field(default_factory=lambda: TypeAdapter(Any), compare=False)
    pool: Pool | None = None
    soft_error: type[Exception] = SoftTimeLimitExceeded
    termination: type[SystemExit] | None = None
    refuse: Callable[[Any], Discard | None] | None = None
    missing: Callable[[Any, Settings, str | None], str | None] | None = None

    def mode_in(self, pool: str) -> Mode:
        """Its mode in a worker with this pool, the setting of that name."""
        if self.mode == "thread" and self.pool is None and pool == "processes":
            return "process"
        return self.mode

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
            for name, resource in handler.resources.items():
                if resource is not Settings and not is_provided(resource):
                    raise KindError(
                        f"{handler.source}: parameter {name!r} of the handler of {handler.kind.name!r} asks for "
                        f"{resource.__qualname__}, which nothing provides; declare it with @provides"
                    )


handlers = Handlers()
"""The handlers of this process. Importing a handler's module adds it."""


def handles(
    job: type[J],
    *,
    isolate: bool = False,
    memory_bytes: int | None = None,
    pool: Pool | None = None,
    missing: Callable[[J, Settings, str | None], str | None] | None = None,
) -> Callable[[Callable[Concatenate[J, P], R]], Callable[Concatenate[J, P], R]]:
    """Declare a function or coroutine as the handler of a kind.

        @handles(SendInvoice)
        async def send_invoice(job: SendInvoice, ctx: Context, mailer: Mailer) -> Sent: ...

    The first parameter takes the job. A parameter annotated `Context` takes the context; one annotated with a
    resource's class takes the resource. `async def` runs on the worker's loop, `def` in a thread, or in a process of a
    worker with `--pool processes`.

    Arguments:
        isolate: run each attempt of a `def` in a child process, which can be killed; job and result are passed as
            JSON.
        memory_bytes: cap of the child's memory; needs `isolate`.
        pool: `processes` runs a `def` in a process that is kept for the next job, `threads` in a thread, whatever the
            worker's pool is.
        missing: says of a job what this worker lacks to run it, such as a section of its settings; None: nothing. Such
            a job is held back for workers that have it, for `unknown_kind_grace`, and then becomes a dead letter.

    Raises:
        KindError: the class has no kind, the kind has a handler, or the signature cannot be served.
    """
    if not isinstance(job, type):
        raise KindError(f"handles takes the class of a job, as in @handles(SendInvoice), not {job!r}")
    if not isinstance(isolate, bool):
        raise KindError(f"handles({job.__qualname__}): isolate must be True or False, not {isolate!r}")
    if pool not in (None, "threads", "processes"):
        raise KindError(f"handles({job.__qualname__}): pool must be 'threads' or 'processes', not {pool!r}")
    if memory_bytes is not None and (type(memory_bytes) is not int or memory_bytes < 1):
        raise KindError(f"handles({job.__qualname__}): memory_bytes must be an integer from 1, not {memory_bytes!r}")

    def declare(function: Callable[Concatenate[J, P], R]) -> Callable[Concatenate[J, P], R]:
        handlers.add(replace(_handler(job, function, isolate, memory_bytes, pool), missing=missing))
        return function

    return declare


def _handler(
    job: type[Job], function: Callable[..., Any], isolate: bool, memory_bytes: int | None, pool: Pool | None
) -> Handler:
    code = getattr(inspect.unwrap(function), "__code__", None)
    if code is None:
        raise KindError(f"the handler of {job.__qualname__} must be a function or a method, not {function!r}")
    label = f"{code.co_filename}:{code.co_firstlineno}: handler {function.__qualname__} of {job.__qualname__}"
    if not issubclass(job, Job) or job.__kind__ is None:
        raise KindError(f'{label}, which has no kind; declare it as class {job.__name__}(Job, kind="…")')
    is_async = inspect.iscoroutinefunction(function)
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise KindError(f"{label}: it has a yield, so calling it would run nothing; return the result instead")
    if isolate and is_async:
        raise KindError(f"{label}: isolate=True takes a plain function, not a coroutine")
    if pool is not None and is_async:
        raise KindError(f"{label}: pool={pool!r} takes a plain function; a coroutine runs on the worker's loop")
    if pool is not None and isolate:
        raise KindError(f"{label}: isolate=True is a process for each attempt; remove it, or pool={pool!r}")
    if memory_bytes is not None and not isolate:
        raise KindError(f"{label}: memory_bytes needs isolate=True")
    try:
        hints, marked = get_type_hints(function), get_type_hints(function, include_extras=True)
    except Exception as error:  # whatever an annotation raises
        raise KindError(
            f"{label}: an annotation cannot be read: {type(error).__name__}: {error}; import what it names outside of "
            "TYPE_CHECKING"
        ) from error
    parameters = list(inspect.signature(function).parameters.values())
    if not parameters or parameters[0].kind not in (
        parameters[0].POSITIONAL_ONLY,
        parameters[0].POSITIONAL_OR_KEYWORD,
    ):
        raise KindError(f"{label}: its first parameter takes the job")
    if not _takes(hints.get(parameters[0].name, Any), job):
        other = inspect.formatannotation(hints[parameters[0].name])
        raise KindError(f"{label}: its first parameter takes the job; annotate it {job.__qualname__}, not {other}")
    context: str | None = None
    resources: dict[str, type] = {}
    for parameter in parameters[1:]:
        annotation = hints.get(parameter.name)
        if annotation is Context:
            context = parameter.name
        elif parameter.default is not parameter.empty:
            continue
        elif isinstance(annotation, type):
            resources[parameter.name] = annotation
        else:
            raise KindError(f"{label}: annotate parameter {parameter.name!r} with Context or the class of a resource")
    _check_result(marked.get("return", Any), label)
    returned = hints.get("return", Any)
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(Any if returned is type(None) else returned)
    except Exception:  # a return annotation such as `Sent | Snooze` may hold what pydantic has no schema for
        adapter = TypeAdapter(Any)
    mode: Mode = "child" if isolate else "async" if is_async else "process" if pool == "processes" else "thread"
    return Handler(job.kind(), function, mode, context, resources, memory_bytes, adapter, pool)


def _check_result(annotation: Any, label: str) -> None:
    """Refuse a sensitive result: results are kept, and given to all who ask, as they are."""
    try:
        sensitive = holds(shapes_of(annotation, "its result"))
    except ValueError:
        sensitive = True
    if sensitive:
        raise KindError(
            f"{label}: its result has Sensitive in it, and results are shown as they are; return what may be seen, "
            "such as the key of a record that holds the value"
        )


def _takes(annotation: Any, job: type[Job]) -> bool:
    """Whether a parameter of this type may be given such a job; True where that cannot be said."""
    if annotation is Any:  # a class, to Python
        return True
    if isinstance(annotation, type):
        try:
            return issubclass(job, annotation)
        except TypeError:  # a protocol with attributes
            return True
    members = get_args(annotation) if isinstance(annotation, UnionType) or get_origin(annotation) is Union else ()
    return not members or any(_takes(member, job) for member in members)


def _path(function: Callable[..., Any]) -> str:
    return f"{function.__module__}.{function.__qualname__}"
