"""The graph that a workflow's class defines, read and checked: its steps, their inputs and their jobs."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter

from penstock.config.errors import KindError
from penstock.schemas.jobs.job import Job
from penstock.schemas.jobs.kind import NAME
from penstock.schemas.workflows import outlines
from penstock.workers.handlers.registry import Handlers
from penstock.workers.handlers.registry import handlers as default_handlers
from penstock.workers.handlers.returns import Discard, Retry, Snooze
from penstock.workers.workflows.steps import MARK, MapOver, Sleep, StepMark, Wait
from penstock.workers.workflows.type_check import fits, is_union, named

Shape = Literal["job", "jobs", "wait", "sleep"]


@dataclass(frozen=True)
class StepInput:
    """A parameter of a step's method, and the result it takes.

    Attributes:
        step: the step that has the result.
        path: a field of the result, a field of that field, and so on.
        each: whether the method is called once for each item (`map_over`).
        optional: whether it takes None for a step that was skipped.
        adapter: JSON → value; with `each`, the list of all values.
    """

    step: str
    annotation: Any
    path: tuple[str, ...]
    each: bool
    optional: bool
    adapter: TypeAdapter[Any] = field(compare=False)


@dataclass(frozen=True)
class Step:
    """A step, or a compensation.

    Attributes:
        inputs: by the names of the parameters.
        makes: the jobs it may send.
        signal: the type that a `Wait` waits for.
        optional: whether its method may return None.
        undoes: the step that a compensation undoes.
    """

    name: str
    function: Callable[..., Any]
    inputs: dict[str, StepInput]
    after: tuple[str, ...]
    shape: Shape
    makes: tuple[type[Job], ...]
    signal: Any
    optional: bool
    compensate: str | None = None
    undoes: str | None = None

    @cached_property
    def needs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([*(input.step for input in self.inputs.values()), *self.after]))

    @cached_property
    def fans_out(self) -> bool:
        return self.shape == "jobs" or any(input.each for input in self.inputs.values())

    def as_json(self) -> dict[str, Any]:
        """The parts by which two definitions differ: all but the code in the method."""
        parts = {
            "needs": list(self.needs),
            "takes": {name: ".".join([input.step, *input.path]) for name, input in self.inputs.items()},
            "makes": sorted(job.kind().name for job in self.makes) or [self.shape],
            "fans_out": self.fans_out,
            "compensate": self.compensate,
            "undoes": self.undoes,
        }
        return {name: value for name, value in parts.items() if value}


@dataclass(frozen=True)
class Definition:
    """A workflow's graph.

    Attributes:
        steps: by name, in an order in which each comes after the steps it needs.
        compensations: by name.
    """

    kind: str
    steps: dict[str, Step]
    compensations: dict[str, Step]

    @cached_property
    def last(self) -> Step | None:
        """The one step that no other needs; its result is the workflow's. None: there are several."""
        needed = {name for step in self.steps.values() for name in step.needs}
        ends = [step for step in self.steps.values() if step.name not in needed]
        return ends[0] if len(ends) == 1 else None

    @cached_property
    def graph(self) -> str:
        """Its steps and compensations, as JSON."""
        return json.dumps({step.name: step.as_json() for step in self._all_steps})

    @cached_property
    def hash(self) -> str:
        return graph_hash(self.graph)

    @property
    def _all_steps(self) -> tuple[Step, ...]:
        return (*self.steps.values(), *self.compensations.values())

    def check_results(self, handlers: Handlers = default_handlers) -> None:
        """Check that the results of the steps fit the parameters that take them, as far as the handlers are known here.

        Raises:
            KindError: a result does not fit; names both steps.
        """
        for step in self._all_steps:
            for name, input in step.inputs.items():
                result = self._result(self.steps[input.step], handlers)
                if input.each or input.path:
                    continue  # an item, or a field: checked when it is there
                if not fits(result, input.annotation):
                    raise KindError(
                        f"workflow {self.kind!r}, step {step.name!r}: parameter {name!r} is {named(input.annotation)}, "
                        f"which the result of step {input.step!r}, {named(result)}, does not fit"
                    )

    def _result(self, step: Step, handlers: Handlers) -> Any:
        if step.shape == "wait":
            return step.signal
        results = [_result_of(job, handlers) for job in step.makes]
        result: Any = Any
        if results and Any not in results:
            result = results[0]
            for other in results[1:]:
                result = result | other
        return list[result] if step.fans_out else result


def graph_hash(graph: str) -> str:
    """Hash of a graph; it does not depend on the order of the steps."""
    return hashlib.sha256(json.dumps(json.loads(graph), sort_keys=True).encode()).hexdigest()[:16]


def difference(before: str, after: str) -> str:
    """The steps that differ between two graphs, in a few words."""
    old, new = json.loads(before), json.loads(after)
    parts = [f"{name} is gone" for name in old if name not in new]
    parts += [f"{name} is new" for name in new if name not in old]
    parts += [f"{name} has changed" for name in old if name in new and old[name] != new[name]]
    return ", ".join(parts) or "in its order"


definitions: dict[str, Definition] = outlines
"""The workflows of this process, by kind."""


def define(cls: type[Job], kind: str) -> Definition:
    """Class of a workflow → its definition.

    Raises:
        KindError: it cannot be run as it is written; names the step.
    """
    label = f"workflow {kind!r}"
    marks = {name: getattr(value, MARK) for name, value in _methods(cls) if hasattr(value, MARK)}
    if not marks:
        raise KindError(f"{label} has no steps; mark its methods with @step")
    undoes = {mark.compensate: name for name, mark in marks.items() if mark.compensate}
    steps = {name: _step(cls, label, name, mark, None, set(marks)) for name, mark in marks.items()}
    for name in undoes:
        if name in marks:
            raise KindError(
                f"{label}, step {undoes[name]!r}: compensate={name!r} is a step itself; take its @step away"
            )
    no_mark = StepMark((), None)
    compensations = {name: _step(cls, label, name, no_mark, step, set(marks)) for name, step in undoes.items()}
    if len({name.casefold() for name in (*steps, *compensations)}) < len(steps) + len(compensations):
        raise KindError(f"{label}: two of its steps differ in capitals only, which not every database tells apart")
    definition = Definition(kind, {name: steps[name] for name in _sorted(label, steps)}, compensations)
    for compensation in compensations.values():
        _check_compensation(label, definition, compensation)
    return definition


def _check_compensation(label: str, definition: Definition, compensation: Step) -> None:
    """Check that a compensation takes only results that its step could rely on."""
    done = {compensation.undoes or ""}
    for name in reversed(definition.steps):
        if name in done:
            done.update(definition.steps[name].needs)
    for name, input in compensation.inputs.items():
        if input.step not in done and not input.optional:
            raise KindError(
                f"{label}, compensation {compensation.name!r}: parameter {name!r} takes the result of "
                f"step {input.step!r}, which may not have one by then; let it be None, as X | None"
            )


def _methods(cls: type[Job]) -> Iterator[tuple[str, Any]]:
    """The methods in the order they are written, those of a base first."""
    seen = set()
    for base in reversed(cls.__mro__):
        for name in vars(base):
            if name not in seen and inspect.isfunction(vars(base)[name]):
                seen.add(name)
                yield name, getattr(cls, name)


def _sorted(label: str, steps: dict[str, Step]) -> list[str]:
    sorter = TopologicalSorter({name: step.needs for name, step in steps.items()})
    try:
        order = list(sorter.static_order())
    except CycleError as error:
        circle = " → ".join(reversed(error.args[1]))
        raise KindError(f"{label}: its steps wait for each other: {circle}") from None
    # As they are written, where the graph leaves it open.
    depth: dict[str, int] = {}
    for name in order:
        depth[name] = 1 + max((depth[needed] for needed in steps[name].needs), default=0)
    return sorted(steps, key=lambda name: depth[name])


def _step(cls: type[Job], label: str, name: str, mark: StepMark, undoes: str | None, steps: set[str]) -> Step:
    label = f"{label}, {'step' if undoes is None else 'compensation'} {name!r}"
    function = getattr(cls, name, None)
    if not inspect.isfunction(function):
        raise KindError(f"{label} is not a method of {cls.__name__}")
    if name in cls.model_fields or hasattr(Job, name) or NAME.fullmatch(name) is None:
        raise KindError(f"{label}: the name is that of a field or of something every job has; choose another")
    try:
        hints = get_type_hints(function, include_extras=True)
    except NameError as error:
        raise KindError(f"{label}: {error}; declare what it is annotated with in its module, above it") from None
    inputs = _inputs(label, function, hints, steps)
    for needed in mark.after:
        if needed not in steps:
            raise KindError(f"{label}: after={needed!r} names no step; there are {_list(steps)}")
    shape, makes, signal, optional = _outputs(label, hints)
    if undoes is not None and shape not in ("job", "jobs"):
        raise KindError(f"{label}: a compensation makes a job")
    each = [input for input in inputs.values() if input.each]
    if len(each) > 1 or (each and shape != "job"):
        raise KindError(f"{label}: map_over goes with one parameter, in a method that makes one job")
    return Step(name, function, inputs, mark.after, shape, makes, signal, optional, mark.compensate, undoes)


def _inputs(label: str, function: Callable[..., Any], hints: dict[str, Any], steps: set[str]) -> dict[str, StepInput]:
    inputs = {}
    for parameter in list(inspect.signature(function).parameters.values())[1:]:
        over = parameter.default
        each = isinstance(over, MapOver)
        if not each and parameter.default is not parameter.empty:
            continue
        source, path = (over.step, over.path) if each else (parameter.name, ())
        if source not in steps:
            raise KindError(f"{label}: {source!r}, which it takes, is not a step; there are {_list(steps)}")
        if parameter.name not in hints:
            raise KindError(f"{label}: annotate parameter {parameter.name!r} with the type of the result it takes")
        annotation = hints[parameter.name]
        optional = (
            annotation is Any or annotation is NoneType or (is_union(annotation) and NoneType in get_args(annotation))
        )
        try:
            adapter: TypeAdapter[Any] = TypeAdapter(list[annotation] if each else annotation)  # type: ignore[valid-type]
        except Exception as error:  # pydantic raises many exception types here
            raise KindError(f"{label}: parameter {parameter.name!r} is of no type that JSON has: {error}") from error
        inputs[parameter.name] = StepInput(source, annotation, path, each, optional and not each, adapter)
    return inputs


def _outputs(label: str, hints: dict[str, Any]) -> tuple[Shape, tuple[type[Job], ...], Any, bool]:
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
            raise KindError(f"{label}: it makes {named(part)}, which is not a job, list of jobs, Wait or Sleep")
        if part.__kind__ is None:
            raise KindError(f"{label}: it makes {part.__qualname__}, which has no kind and cannot be sent")
        if not part.__kind__.track:
            raise KindError(f"{label}: {part.__kind__.name!r} has track=False, so nobody would know of its end")
    return shape, tuple(parts), None, optional


def _result_of(job: type[Job], handlers: Handlers) -> Any:
    """The return type of a kind's handler; Any where no handler is known here."""
    if (inner := definitions.get(job.kind().name)) is not None:
        return NoneType if inner.last is None else inner._result(inner.last, handlers)
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
    """Check the results of all workflows' steps when a worker boots, as far as its handlers are known.

    Raises:
        KindError: names the workflow and both steps.
    """
    for definition in definitions.values():
        definition.check_results(handlers)
