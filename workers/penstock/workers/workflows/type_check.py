"""Whether one step's result can be another's parameter, as far as their types tell before anything runs.

Results travel as JSON. Where the types do not tell, they fit: the value is checked when it is there.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints, is_typeddict

from pydantic import BaseModel

_ARRAYS = (list, tuple, set, frozenset)
_SHAPES: dict[Any, str] = {str: "text", bytes: "text", int: "integer", float: "number", bool: "boolean"}
_WIDER = {("integer", "number")}


def fits(result: Any, wanted: Any) -> bool:
    """Whether a result of one type is a value of another."""
    result, wanted = _bare(result), _bare(wanted)
    if result is wanted or Any in (result, wanted) or wanted is object:
        return True
    if is_union(result):
        return all(fits(one, wanted) for one in get_args(result))
    if is_union(wanted):
        return any(fits(result, one) for one in get_args(wanted))
    shape, other = _shape(result), _shape(wanted)
    if shape is None or other is None:
        return True
    if shape == other == "array":
        return fits(_item(result), _item(wanted))
    if shape == other == "object":
        return _has_fields_of(result, wanted)
    return shape == other or (shape, other) in _WIDER


def is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, types.UnionType)


def named(annotation: Any) -> str:
    """A type as people write it."""
    if isinstance(annotation, type) and not get_args(annotation):
        return "None" if annotation is type(None) else annotation.__qualname__
    return str(annotation).replace("typing.", "")


def _bare(annotation: Any) -> Any:
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    return annotation


def _shape(annotation: Any) -> str | None:
    """What it is in JSON; None where that is not known."""
    kind = get_origin(annotation) or annotation
    if kind is None or kind is type(None):
        return "null"
    if kind in _SHAPES:
        return _SHAPES[kind]
    if kind in _ARRAYS:
        return "array"
    if _fields(annotation) is not None or (isinstance(kind, type) and issubclass(kind, Mapping)):
        return "object"
    return None


def _item(annotation: Any) -> Any:
    return next((one for one in get_args(annotation) if one is not Ellipsis), Any)


def _has_fields_of(result: Any, wanted: Any) -> bool:
    """Whether each field that is needed is there, of a type that fits."""
    has, needs = _fields(result), _fields(wanted)
    if has is None or needs is None:
        return True  # a dict holds anything
    return all(fits(has[name][0], type_) if name in has else not required for name, (type_, required) in needs.items())


def _fields(annotation: Any) -> dict[str, tuple[Any, bool]] | None:
    """Type of each field, and whether it must be given; None for what has no fields that are known."""
    if not isinstance(annotation, type):
        return None
    if issubclass(annotation, BaseModel):
        return {
            info.validation_alias if isinstance(info.validation_alias, str) else name: (
                info.annotation,
                info.is_required(),
            )
            for name, info in annotation.model_fields.items()
        }
    try:
        if is_typeddict(annotation):
            required = annotation.__required_keys__  # type: ignore[attr-defined]
            return {name: (type_, name in required) for name, type_ in get_type_hints(annotation).items()}
        if dataclasses.is_dataclass(annotation):
            hints, missing = get_type_hints(annotation), dataclasses.MISSING
            return {
                one.name: (hints[one.name], one.default is missing and one.default_factory is missing)
                for one in dataclasses.fields(annotation)
            }
    except NameError:  # an annotation that cannot be resolved from here
        return None
    return None
