"""Fields of a job class, from the parameters of a function."""

from __future__ import annotations

import inspect
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from inspect import Parameter
from typing import Any, Optional, get_type_hints

from pydantic import TypeAdapter, ValidationError

from penstock.config.errors import KindError
from penstock.schemas.jobs.job import Job
from penstock.schemas.jobs.kind import registry
from penstock.workers.engines.typed.layout import Group, Node, call, comment, lay_out, text_of, with_prefix
from penstock.workers.engines.typed.names import Names
from penstock.workers.engines.typed.values import Unwritable, write_type, write_value

_PROBE = "penstock.adopt.probe"
"""The kind of classes that are made to see whether a field can be one."""
_SCALARS = (bool, int, float, str)
_IN_ANNOTATIONS = ("bool", "bytes", "dict", "float", "frozenset", "int", "list", "set", "str", "tuple", "type")
"""A field of such a name with a default would be in the way of the annotations after it."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """An annotation that cannot be evaluated, and why."""

    reason: str


@dataclass(frozen=True, slots=True)
class JobField:
    """A field, and how the handler passes it on.

    Attributes:
        name: of the field.
        lines: of the class.
        argument: of the call.
        is_renamed: it has the parameter's name as its alias.
        is_optional: None means the function's own default, and `argument` is the parameter's name.
    """

    name: str
    lines: list[str]
    argument: str
    is_renamed: bool = False
    is_optional: bool = False


def fields_of(signature: inspect.Signature, hints: Mapping[str, Any], names: Names) -> Iterator[JobField]:
    """The fields of the parameters, in their order."""
    parameters = list(signature.parameters.values())
    by_position = any(parameter.kind is Parameter.VAR_POSITIONAL for parameter in parameters)
    names_in_use = {parameter.name for parameter in parameters}
    for parameter in parameters:
        name = _field_name(parameter.name, names_in_use)
        yield _field(parameter, name, hints.get(parameter.name, Parameter.empty), names, by_position)


def hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Annotations by parameter, `return` among them. One that cannot be evaluated is `Unreadable`."""
    plain = inspect.unwrap(function)
    plain = getattr(plain, "__func__", plain)
    hints: dict[str, Any] = {}
    for name, annotation in getattr(plain, "__annotations__", {}).items():
        holder: Any = types.SimpleNamespace(__annotations__={name: annotation})
        try:
            hints[name] = get_type_hints(holder, getattr(plain, "__globals__", {}), include_extras=True)[name]
        except Exception as error:  # whatever an annotation raises
            text = annotation if isinstance(annotation, str) else repr(annotation)
            hints[name] = Unreadable(f"{text} cannot be read: {type(error).__name__}: {error}")
    return hints


def write_result(annotation: Any, names: Names) -> str:
    """The annotation of a result; Any where it has none, or none that pydantic can take."""
    if annotation is inspect.Signature.empty or isinstance(annotation, Unreadable):
        return write_type(Any, names)
    try:
        with names.undone_on_errors(), warnings.catch_warnings():
            warnings.simplefilter("error")
            TypeAdapter(annotation)
            return write_type(annotation, names)
    except Exception:  # pydantic has many
        return write_type(Any, names)


def _field(parameter: Parameter, name: str, annotation: Any, names: Names, by_position: bool) -> JobField:
    value = f"job.{name}"
    if parameter.kind in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD):
        is_list = parameter.kind is Parameter.VAR_POSITIONAL
        kind = write_type(list[Any] if is_list else dict[str, Any], names)
        line = _line(name, kind, Group("[" if is_list else "{", (), "]" if is_list else "}"), parameter.name, names)
        return JobField(name, line, ("*" if is_list else "**") + value, name != parameter.name)
    default, comments, is_optional = _default(parameter, names)
    kind, problem = _type(name, parameter, annotation, is_optional, names)
    comments += comment(f"{parameter.name}: {problem}", "    ") if problem else []
    positional = parameter.kind is Parameter.POSITIONAL_ONLY or (
        by_position and parameter.kind is Parameter.POSITIONAL_OR_KEYWORD
    )
    is_optional = is_optional and not positional and name == parameter.name
    argument = parameter.name if is_optional else value if positional else f"{parameter.name}={value}"
    lines = [*comments, *_line(name, kind, default, parameter.name, names)]
    return JobField(name, lines, argument, name != parameter.name, is_optional)


def _line(name: str, kind: str, default: Node | None, parameter: str, names: Names) -> list[str]:
    options: dict[str, Any] = {"default": default}
    mutable = {"[": "list", "{": "dict"}.get(default.opening) if isinstance(default, Group) else None
    if mutable and isinstance(default, Group) and not default.items:
        options = {"default_factory": mutable}
    if name != parameter:
        options["alias"] = text_of(parameter)
    if mutable or name != parameter:
        default = call(names.imported("pydantic", "Field"), **options)
    return list(lay_out(f"    {name}: {kind}" if default is None else with_prefix(f"    {name}: {kind} = ", default)))


def _default(parameter: Parameter, names: Names) -> tuple[Node | None, list[str], bool]:
    """The default, lines that explain it, and whether it is None in place of one that cannot be written."""
    if parameter.default is Parameter.empty:
        return None, [], False
    try:
        with names.undone_on_errors():
            return write_value(parameter.default, names), [], False
    except Unwritable as error:
        text = f"{parameter.name}: None is the default of the task: {error}"
        return "None", comment(text, "    "), True


def _type(name: str, parameter: Parameter, annotation: Any, is_optional: bool, names: Names) -> tuple[str, str | None]:
    """The type as Python, and why it is not the annotation."""
    default = None if is_optional else parameter.default
    if annotation is Parameter.empty:
        annotation, problem = _type_of(default), None
    elif isinstance(annotation, Unreadable):
        annotation, problem = Any, annotation.reason
    else:
        problem = refusal(name, annotation)
    if problem is None:
        if default is None and annotation is not Any and refusal(name, annotation, default) is not None:
            annotation = Optional[annotation]  # noqa: UP045  # the annotation need not be a class
        if default is not Parameter.empty:
            problem = refusal(name, annotation, default)
    if problem is None:
        try:
            with names.undone_on_errors():
                return write_type(annotation, names), None
        except Unwritable as error:
            problem = str(error)
    return write_type(Any, names), problem


def _type_of(default: Any) -> Any:
    if type(default) in _SCALARS:
        return type(default)
    containers: dict[Any, Any] = {list: list[Any], dict: dict[str, Any]}
    return containers.get(type(default), Any)


def _field_name(parameter: str, names_in_use: set[str]) -> str:
    """The parameter's name, or one that a field may have and no other parameter has."""
    if parameter not in _IN_ANNOTATIONS and refusal(parameter, Any) is None:
        return parameter
    name = f"{parameter.strip('_') or 'field'}_"
    while name in names_in_use or refusal(name, Any) is not None:
        name = f"{name}_"
    names_in_use.add(name)
    return name


def refusal(name: str, annotation: Any, default: Any = Parameter.empty) -> str | None:
    """Why pydantic or `Job` refuses a field; None: it does not."""

    def fill(namespace: dict[str, Any]) -> None:
        namespace["__annotations__"] = {name: annotation}
        if default is not Parameter.empty:
            namespace[name] = default

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            keywords: dict[str, Any] = {"kind": _PROBE, "validate_default": True}
            job: Any = types.new_class("Probe", (Job,), keywords, fill)
            if name not in job.model_fields:
                return f"{name} is not the name of a field"
            if default is not Parameter.empty:
                job.model_validate({})
    except ValidationError:
        return f"its default {default!r} is not what its annotation says"
    except KindError as error:
        return str(error).partition(f"(kind {_PROBE!r}): ")[2] or str(error)
    except Exception as error:  # pydantic has many
        return " ".join(str(error).split(". ")[0].split())
    finally:
        if (kind := registry.find(_PROBE)) is not None:
            registry.discard(kind)
    return None
