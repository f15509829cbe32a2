"""Values and types as Python: those that a module can hold, with the imports that they need."""

from __future__ import annotations

import builtins
import collections.abc
import enum
import inspect
import math
import sys
import types
import typing
from datetime import timedelta
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from penstock.workers.engines.typed.layout import Group, Node, call, text_of
from penstock.workers.engines.typed.names import Names


class Unwritable(Exception):
    """A value or a type cannot be written as Python. Its text says why."""


def write_value(value: Any, names: Names) -> Node:
    """A constant as Python.

    Raises:
        Unwritable: no literal makes it.
    """
    if isinstance(value, enum.Enum):
        return f"{write_class(type(value), names)}.{value.name}"
    match value:
        case None | bool():
            return repr(value)
        case str() if type(value) is str:
            return text_of(value)
        case int() | bytes() if type(value) in (int, bytes):
            return repr(value)
        case float() if type(value) is float and math.isfinite(value):
            return repr(value)
        case timedelta():
            return call(names.imported("datetime", "timedelta"), seconds=write_seconds(value))
        case list() if type(value) is list:
            return Group("[", [write_value(item, names) for item in value], "]")
        case tuple() if type(value) is tuple:
            items = [write_value(item, names) for item in value]
            return Group("(", items, ",)" if len(items) == 1 else ")")
        case dict() if type(value) is dict:
            return Group("{", [_pair(write_value(key, names), item, names) for key, item in value.items()], "}")
        case type():
            return write_class(value, names)
        case BaseModel():
            fields = {name: write_value(getattr(value, name), names) for name in sorted(value.model_fields_set)}
            ordered = {name: fields[name] for name in type(value).model_fields if name in fields}
            return call(write_class(type(value), names), **ordered)
    raise Unwritable(f"{_short(value)} is not a constant")


def _pair(key: Node, item: Any, names: Names) -> Node:
    value = write_value(item, names)
    return f"{key}: {value}" if isinstance(value, str) else Group(f"{key}: {value.opening}", value.items, value.closing)


def write_seconds(duration: timedelta) -> str:
    """A duration in seconds, as Python."""
    seconds = duration.total_seconds()
    return repr(int(seconds) if seconds == int(seconds) else seconds)


_PUBLIC = {"RetryPolicy": "penstock.schemas", "Rate": "penstock.schemas"}


def write_class(value: Any, names: Names) -> str:
    """A class, imported where it must be.

    Raises:
        Unwritable: no import gets it.
    """
    module, path = value.__module__, getattr(value, "__qualname__", value.__name__)
    if module == "builtins" and getattr(builtins, path, None) is value:
        return str(path)
    if module == "__main__" or "<locals>" in path:
        raise Unwritable(f"{path} is not an attribute of a module")
    first, _, rest = path.partition(".")
    module = _PUBLIC.get(path, module) if module.startswith("penstock.") else module
    reached: Any = sys.modules.get(module)
    for part in path.split("."):
        reached = getattr(reached, part, None)
    if reached is not value:
        raise Unwritable(f"{module} has no {path}")
    name = names.imported(module, first)
    return f"{name}.{rest}" if rest else name


def write_type(annotation: Any, names: Names) -> str:
    """An annotation as Python.

    Raises:
        Unwritable: it names what no import gets, or is nothing that a field can be.
    """
    if annotation is None or annotation is type(None):
        return "None"
    if annotation is Any:
        return names.imported("typing", "Any")
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:  # what pydantic reads of it is lost
        return write_type(arguments[0], names)
    if origin in (Union, types.UnionType):
        return " | ".join(write_type(item, names) for item in sorted(arguments, key=lambda item: item is type(None)))
    if origin is Literal:
        values = ", ".join(str(write_value(item, names)) for item in arguments)
        return f"{names.imported('typing', 'Literal')}[{values}]"
    if origin is collections.abc.Callable or isinstance(annotation, typing.TypeVar | typing.ForwardRef | str):
        raise Unwritable(f"{_named(annotation)} is not the type of a field")
    if origin is not None:
        if not isinstance(origin, type):
            raise Unwritable(f"{_named(annotation)} is not the type of a field")
        items = ", ".join("..." if item is ... else write_type(item, names) for item in arguments)
        return f"{write_class(origin, names)}[{items}]"
    if isinstance(annotation, type) or hasattr(annotation, "__supertype__"):
        return write_class(annotation, names)
    raise Unwritable(f"{_named(annotation)} is not the type of a field")


def _named(annotation: Any) -> str:
    return _short(annotation) if not isinstance(annotation, str) else annotation


def _short(value: Any) -> str:
    try:
        text = inspect.formatannotation(value) if isinstance(value, type) else repr(value)
    except Exception:  # whatever a repr raises
        text = f"an object of {type(value).__name__}"
    text = " ".join(text.split())
    return text if len(text) <= 60 else f"{text[:57]}..."
