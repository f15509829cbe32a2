"""Type check of a workflow: whether the result of a step fits the parameter of another, before anything runs.

Results travel as JSON. Where the types are not enough to decide, they fit: the value is checked when it exists.
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


def fits(result: Any, parameter: Any) -> bool:
    """Whether a result of the first type is a value of the second."""
    result, parameter = _bare(result), _bare(parameter)
    if result is parameter or Any in (result, parameter) or parameter is object:
        return True
    if is_union(result):
        return all(fits(member, parameter) for member in get_args(result))
    if is_union(parameter):
        return any(fits(result, member) for member in get_args(parameter))
    shape, other = _shape(result), _shape(parameter)
    if shape is None or other is None:
        return True
    if shape == other == "array":
        return fits(_item(result), _item(parameter))
    if shape == other == "object":
        return _has_fields_of(result, parameter)
    return shape == other or (shape, other) in _WIDER


def is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, types.UnionType)


def named(annotation: Any) -> str:
    """Type → its name as people write it."""
    if isinstance(annotation, type) and not get_args(annotation):
        return "None" if annotation is type(None) else annotation.__qualname__
    return str(annotation).replace("typing.", "")


def _bare(annotation: Any) -> Any:
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    return annotation


def _shape(annotation: Any) -> str | None:
    """Type → its kind in JSON; None: it is not known."""
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
    return next((item for item in get_args(annotation) if item is not Ellipsis), Any)


def _has_fields_of(result: Any, parameter: Any) -> bool:
    """Whether the result has each required field, with a type that fits."""
    has, needs = _fields(result), _fields(parameter)
    if has is None or needs is None:
        return True  # a dict holds anything
    return all(fits(has[name][0], type_) if name in has else not required for name, (type_, required) in needs.items())


def _fields(annotation: Any) -> dict[str, tuple[Any, bool]] | None:
    """Map each field to (type, required), or None if the type has no known fields."""
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
                field.name: (hints[field.name], field.default is missing and field.default_factory is missing)
                for field in dataclasses.fields(annotation)
            }
    except NameError:  # an annotation that cannot be resolved from here
        return None
    return None
