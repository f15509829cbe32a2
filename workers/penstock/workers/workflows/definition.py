"""What a workflow's class says, read and checked: its steps, what each needs and what each makes."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter

from penstock.config.errors import KindError
from penstock.schemas.jobs.job import NAME, Job
from penstock.schemas.workflows import outlines
from penstock.workers.handlers.registry import Handlers
from penstock.workers.handlers.registry import handlers as default_handlers
from penstock.workers.handlers.returns import Discard, Retry, Snooze
from penstock.workers.workflows.steps import MARK, MapOver, Marked, Sleep, Wait
from penstock.workers.workflows.type_check import fits, is_union, named

if TYPE_CHECKING:
    from penstock.workers.workflows.workflow import Workflow

Shape = Literal["job", "jobs", "wait", "sleep"]


@dataclass(frozen=True)
class Taken:
    """A parameter, and the result it takes.

    Attributes:
        step: whose.
        path: a field of the result, and a field of that.
        each: one item of it at a time (`map_over`).
        optional: whether None will do, for a step that was skipped.
        reads: makes the value of JSON; of `each` the list of all values.
    """

    step: str
    annotation: Any
    path: tuple[str, ...]
    each: bool
    optional: bool
    reads: TypeAdapter[Any] = field(compare=False)


@dataclass(frozen=True)
class Step:
    """One step, or one compensation.

    Attributes:
        makes: the jobs it may send.
        answer: the type a `Wait` waits for.
        optional: whether its method may return None.
        undoes: of a compensation: the step it undoes.
    """

    name: str
    function: Callable[..., Any]
    takes: dict[str, Taken]
    after: tuple[str, ...]
    shape: Shape
    makes: tuple[type[Job], ...]
    answer: Any
    optional: bool
    compensate: str | None = None
    undoes: str | None = None

    @cached_property
    def needs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([*(one.step for one in self.takes.values()), *self.after]))

    @cached_property
    def fans_out(self) -> bool:
        return self.shape == "jobs" or any(one.each for one in self.takes.values())

    def as_json(self) -> dict[str, Any]:
        """What makes one definition differ from another: all but the code in the method."""
        shown = {
            "needs": list(self.needs),
            "takes": {name: ".".join([one.step, *one.path]) for name, one in self.takes.items()},
            "makes": sorted(job.kind().name for job in self.makes) or [self.shape],
            "fans_out": self.fans_out,
            "compensate": self.compensate,
            "undoes": self.undoes,
        }
        return {name: value for name, value in shown.items() if value}


@dataclass(frozen=True)
class Definition:
    """A workflow's graph.

    Attributes:
        steps: in an order in which each comes after what it needs.
        compensations: by their names.
    """

    kind: str
    steps: dict[str, Step]
    compensations: dict[str, Step]

    @cached_property
    def last(self) -> Step | None:
        """The one step that no other needs, whose result is the workflow's; None where there are several."""
        needed = {name for one in self.steps.values() for name in one.needs}
        ends = [one for one in self.steps.values() if one.name not in needed]
        return ends[0] if len(ends) == 1 else None

    @cached_property
    def graph(self) -> str:
        """As JSON."""
        return json.dumps({one.name: one.as_json() for one in (*self.steps.values(), *self.compensations.values())})

    @cached_property
    def hash(self) -> str:
        return graph_hash(self.graph)

    def downstream(self, names: set[str]) -> set[str]:
        """These steps and all that need them, directly or not."""
        found = set(names)
        for one in self.steps.values():
            if found.intersection(one.needs):
                found.add(one.name)
        return found

    def check_results(self, handlers: Handlers = default_handlers) -> None:
        """Whether the results of the steps fit the parameters that take them, as far as the handlers are known here.

        Raises:
            KindError: one does not; names both steps.
        """
        for one in (*self.steps.values(), *self.compensations.values()):
            for name, taken in one.takes.items():
                result = self._result(self.steps[taken.step], handlers)
                if taken.each or taken.path:
                    continue  # one item, or one field: checked when it is there
                if not fits(result, taken.annotation):
                    raise KindError(
                        f"workflow {self.kind!r}, step {one.name!r}: parameter {name!r} is {named(taken.annotation)}, "
                        f"which the result of step {taken.step!r}, {named(result)}, does not fit"
                    )

    def _result(self, step: Step, handlers: Handlers) -> Any:
        if step.shape == "wait":
            return step.answer
        results = [_result_of(job, handlers) for job in step.makes]
        result: Any = Any
        if results and Any not in results:
            result = results[0]
            for other in results[1:]:
                result = result | other
        return list[result] if step.fans_out else result


def graph_hash(graph: str) -> str:
    """Of two graphs that say the same, in whatever order, it is the same."""
    return hashlib.sha256(json.dumps(json.loads(graph), sort_keys=True).encode()).hexdigest()[:16]


def difference(before: str, after: str) -> str:
    """What a definition has become, in a few words."""
    old, new = json.loads(before), json.loads(after)
    parts = [f"{name} is gone" for name in old if name not in new]
    parts += [f"{name} is new" for name in new if name not in old]
    parts += [f"{name} has changed" for name in old if name in new and old[name] != new[name]]
    return ", ".join(parts) or "in its order"


definitions: dict[str, Definition] = outlines
"""The workflows of this process, by kind."""


def define(cls: type[Workflow], kind: str) -> Definition:
    """Read a workflow's class.

    Raises:
        KindError: it cannot be run as it is written; names the step.
    """
    label = f"workflow {kind!r}"
    marked = {name: getattr(value, MARK) for name, value in _methods(cls) if hasattr(value, MARK)}
    if not marked:
        raise KindError(f"{label} has no steps; mark its methods with @step")
    undone = {marks.compensate: name for name, marks in marked.items() if marks.compensate}
    steps = {name: _step(cls, label, name, marks, None, set(marked)) for name, marks in marked.items()}
    for name in undone:
        if name in marked:
            raise KindError(
                f"{label}, step {undone[name]!r}: compensate={name!r} is a step itself; take its @step away"
            )
    undoing = {name: _step(cls, label, name, Marked((), None), undoes, set(marked)) for name, undoes in undone.items()}
    if len({name.casefold() for name in (*steps, *undoing)}) < len(steps) + len(undoing):
        raise KindError(f"{label}: two of its steps differ in capitals only, which not every database tells apart")
    definition = Definition(kind, {name: steps[name] for name in _sorted(label, steps)}, undoing)
    for undo in undoing.values():
        _check_undo(label, definition, undo)
    return definition


def _check_undo(label: str, definition: Definition, undo: Step) -> None:
    """A compensation may only count on what its step has counted on."""
    done = {undo.undoes or ""}
    for name in reversed(definition.steps):
        if name in done:
            done.update(definition.steps[name].needs)
    for name, taken in undo.takes.items():
        if taken.step not in done and not taken.optional:
            raise KindError(
                f"{label}, compensation {undo.name!r}: parameter {name!r} takes the result of step {taken.step!r}, "
                "which may not have one by then; let it be None, as X | None"
            )


def _methods(cls: type[Workflow]) -> Iterator[tuple[str, Any]]:
    """In the order they are written, a base's first."""
    seen = set()
    for base in reversed(cls.__mro__):
        for name in vars(base):
            if name not in seen and inspect.isfunction(vars(base)[name]):
                seen.add(name)
                yield name, getattr(cls, name)


def _sorted(label: str, steps: dict[str, Step]) -> list[str]:
    sorter = TopologicalSorter({name: one.needs for name, one in steps.items()})
    try:
        order = list(sorter.static_order())
    except CycleError as error:
        circle = " → ".join(reversed(error.args[1]))
        raise KindError(f"{label}: its steps wait for each other: {circle}") from None
    # As they are written, where the graph leaves it open.
    depth: dict[str, int] = {}
    for name in order:
        depth[name] = 1 + max((depth[one] for one in steps[name].needs), default=0)
    return sorted(steps, key=lambda name: depth[name])


def _step(cls: type[Workflow], label: str, name: str, marks: Marked, undoes: str | None, steps: set[str]) -> Step:
    label = f"{label}, {'step' if undoes is None else 'compensation'} {name!r}"
    function = getattr(cls, name, None)
    if not inspect.isfunction(function):
        raise KindError(f"{label} is no method of {cls.__name__}")
    if name in cls.model_fields or hasattr(Job, name) or NAME.fullmatch(name) is None:
        raise KindError(f"{label}: the name is that of a field or of something every job has; choose another")
    try:
        hints = get_type_hints(function, include_extras=True)
    except NameError as error:
        raise KindError(f"{label}: {error}; declare what it is annotated with in its module, above it") from None
    takes = _takes(label, function, hints, steps)
    for needed in marks.after:
        if needed not in steps:
            raise KindError(f"{label}: after={needed!r} names no step; there are {_list(steps)}")
    shape, makes, answer, optional = _made(label, hints)
    if undoes is not None and shape not in ("job", "jobs"):
        raise KindError(f"{label}: a compensation makes a job")
    each = [one for one in takes.values() if one.each]
    if len(each) > 1 or (each and shape != "job"):
        raise KindError(f"{label}: map_over goes with one parameter, in a method that makes one job")
    return Step(name, function, takes, marks.after, shape, makes, answer, optional, marks.compensate, undoes)


def _takes(label: str, function: Callable[..., Any], hints: dict[str, Any], steps: set[str]) -> dict[str, Taken]:
    takes = {}
    for parameter in list(inspect.signature(function).parameters.values())[1:]:
        over = parameter.default
        each = isinstance(over, MapOver)
        if not each and parameter.default is not parameter.empty:
            continue
        source, path = (over.step, over.path) if each else (parameter.name, ())
        if source not in steps:
            raise KindError(f"{label}: {source!r}, which it takes, is no step; there are {_list(steps)}")
        if parameter.name not in hints:
            raise KindError(f"{label}: annotate parameter {parameter.name!r} with the type of the result it takes")
        wanted = hints[parameter.name]
        optional = wanted is Any or wanted is NoneType or (is_union(wanted) and NoneType in get_args(wanted))
        try:
            reads: TypeAdapter[Any] = TypeAdapter(list[wanted] if each else wanted)  # type: ignore[valid-type]
        except Exception as error:  # pydantic has many
            raise KindError(f"{label}: parameter {parameter.name!r} is of no type that JSON has: {error}") from error
        takes[parameter.name] = Taken(source, wanted, path, each, optional and not each, reads)
    return takes


def _made(label: str, hints: dict[str, Any]) -> tuple[Shape, tuple[type[Job], ...], Any, bool]:
    if "return" not in hints:
        raise KindError(f"{label}: annotate what it makes: a job, list[job], Wait[…] or Sleep")
    returned = hints["return"]
    parts = list(get_args(returned)) if is_union(returned) else [returned]
    optional = NoneType in parts
    parts = [part for part in parts if part is not NoneType]
    if len(parts) == 1 and parts[0] is Sleep:
        return "sleep", (), None, optional
    if len(parts) == 1 and (get_origin(parts[0]) or parts[0]) is Wait:
        return "wait", (), (*get_args(parts[0]), Any)[0], optional
    shape: Shape = "job"
    if len(parts) == 1 and get_origin(parts[0]) is list:
        shape, parts = "jobs", list(get_args(parts[0]))
        if len(parts) == 1 and is_union(parts[0]):
            parts = list(get_args(parts[0]))
    if not parts:
        raise KindError(f"{label}: it makes nothing")
    for part in parts:
        if not (isinstance(part, type) and issubclass(part, Job)):
            raise KindError(f"{label}: it makes {named(part)}, which is no job, list of jobs, Wait or Sleep")
        if part.__kind__ is None:
            raise KindError(f"{label}: it makes {part.__qualname__}, which has no kind and cannot be sent")
        if not part.__kind__.track:
            raise KindError(f"{label}: {part.__kind__.name!r} has track=False, so nobody would know of its end")
    return shape, tuple(parts), None, optional


def _result_of(job: type[Job], handlers: Handlers) -> Any:
    """What the handler of a kind says it returns; Any where it is not known here."""
    from penstock.workers.workflows.workflow import Workflow

    if issubclass(job, Workflow):
        inner = definitions.get(job.kind().name)
        return NoneType if inner is None or inner.last is None else inner._result(inner.last, handlers)
    handler = handlers.find(job.kind())
    if handler is None:
        return Any
    try:
        returned = get_type_hints(inspect.unwrap(handler.function), include_extras=True).get("return", Any)
    except NameError:
        return Any
    parts = list(get_args(returned)) if is_union(returned) else [returned]
    parts = [part for part in parts if part not in (Snooze, Discard, Retry)]
    result: Any = parts[0] if parts else NoneType
    for part in parts[1:]:
        result = result | part
    return result


def _list(names: set[str]) -> str:
    return ", ".join(sorted(names))


def check_workflows(handlers: Handlers = default_handlers) -> None:
    """Refuse, when a worker boots, workflows whose steps' results do not fit, as far as its handlers tell.

    Raises:
        KindError: names the workflow and both steps.
    """
    for definition in definitions.values():
        definition.check_results(handlers)
