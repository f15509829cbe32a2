"""The vocabulary of a workflow: `step`, `map_over`, `Wait` and `Sleep`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Generic, TypeVar, overload

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

MARK = "__penstock_step__"


@dataclass(frozen=True, slots=True)
class StepMark:
    """The arguments of `@step`."""

    after: tuple[str, ...]
    compensate: str | None


@overload
def step(function: F) -> F: ...
@overload
def step(*, after: str | Sequence[str] = (), compensate: str | None = None) -> Callable[[F], F]: ...
def step(
    function: F | None = None, *, after: str | Sequence[str] = (), compensate: str | None = None
) -> F | Callable[[F], F]:
    """Mark a method of a workflow as a step.

        @step
        def report(self, sync: Synced) -> BuildReport:
            return BuildReport(month=self.month, rows=sync.rows)

    A parameter takes the result of the step of its name, so this step begins when that step has succeeded. The method
    returns what the step does: a job, a list of jobs that run side by side, a `Wait`, a `Sleep`, another workflow, or
    None to be skipped; the annotation says which. The method must have no effects of its own: it may be called again,
    also in another process.

    Arguments:
        after: names of steps that must have succeeded, but whose results are not needed.
        compensate: the name of a method that makes the job which undoes this step. The method is written like a step,
            without `@step`, and may take this step's result.
    """

    def mark(function: F) -> F:
        names = (after,) if isinstance(after, str) else tuple(after)
        setattr(function, MARK, StepMark(names, compensate))
        return function

    return mark if function is None else mark(function)


@dataclass(frozen=True, slots=True)
class MapOver:
    step: str
    path: tuple[str, ...]


def map_over(source: str) -> Any:
    """The default of a parameter that takes one item of a step's result; the method is called once for each item.

        @step
        def report(self, region: str = map_over("sync.regions")) -> BuildReport: ...

    Arguments:
        source: the name of a step whose result is a list, or that fans out; after a dot, a field of its result.
    """
    name, *path = source.split(".")
    return MapOver(name, tuple(path))


_NOTHING: Final[Any] = object()


class Wait(Generic[T]):
    """Wait for a signal, such as an event or an approval: `penstock workflows signal ID STEP JSON`, or `signal(…)`.

        @step
        def approval(self, report: Built) -> Wait[Decision]:
            return Wait(Decision, within=timedelta(days=3), otherwise=Decision(approved=False))

    Arguments:
        answer: the type of the signal, which becomes the step's result.
        within: how long it waits; in seconds or as a timedelta. None: for ever.
        otherwise: the result when that time is up. Default: the step is dead then.
    """

    def __init__(self, answer: type[T], *, within: float | timedelta | None = None, otherwise: T = _NOTHING) -> None:
        self.answer = answer
        self.within = timedelta(seconds=within) if isinstance(within, int | float) else within
        self.otherwise = otherwise
        if self.within is None and otherwise is not _NOTHING:
            raise ValueError("Wait(otherwise=…) is for a time that is up; give within= too")

    @property
    def has_otherwise(self) -> bool:
        return self.otherwise is not _NOTHING


class Sleep:
    """Wait for a time: `Sleep(timedelta(days=3))`, `Sleep(until=…)`. Nothing runs meanwhile, and it has no result."""

    def __init__(self, duration: float | timedelta = 0, *, until: datetime | None = None) -> None:
        if until is not None:
            if until.tzinfo is None:
                raise ValueError(f"Sleep(until={until!r}) is naive; give it a time zone")
            duration = until - datetime.now(UTC)
        self.duration = timedelta(seconds=duration) if isinstance(duration, int | float) else duration
