"""`Sensitive`: marks fields whose values must not be seen, and finds their values in a payload."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from types import UnionType
from typing import (
    Annotated,
    Any,
    ForwardRef,
    Literal,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from pydantic import AliasChoices, AliasPath, BaseModel, RootModel
from pydantic.fields import FieldInfo

SENSITIVE = "penstock:sensitive"
"""Marks an annotation that `Sensitive` makes."""

HIDDEN = "***"

_T = TypeVar("_T")
Sensitive = Annotated[_T, SENSITIVE]
"""`iban: Sensitive[str]`: the value travels as it is, and shows as `***` in logs, errors, Flower and the dashboards."""


@dataclasses.dataclass(slots=True, eq=False)
class Shape:
    """Type of a JSON value, as far as its sensitive parts are concerned.

    Attributes:
        whole: all of the value is sensitive.
        fields: of an object with known names; other names are hidden, if any of these holds a sensitive value.
        each: of an array's elements.
        values: of an object's values, whatever their names.
        holds: whether it has a sensitive part.
    """

    whole: bool = False
    fields: dict[str, Shapes] | None = None
    each: Shapes | None = None
    values: Shapes | None = None
    holds: bool = False

    def parts(self) -> Iterator[Shape]:
        for shapes in (*(self.fields or {}).values(), self.each or [], self.values or []):
            yield from shapes


Shapes = list[Shape]
"""The alternatives of a union; of any other type there is one."""

_WHOLE = Shape(whole=True, holds=True)
_PLAIN = Shape()


def shapes_of_model(model: type[BaseModel]) -> Shapes:
    """Shape of a model's payload, under the names of its fields and their aliases.

    Raises:
        ValueError: `Sensitive` is where it has no effect; says what to write instead.
    """
    if not model.__pydantic_complete__:
        model.model_rebuild(raise_errors=False)
    return _marked(_Reader().read(model, model.__name__))


def shapes_of(annotation: Any, name: str) -> Shapes:
    """Shape of any annotated value, called `name` in messages. Raises ValueError, as `shapes_of_model`."""
    return _marked(_Reader().read(annotation, name))


def holds(shapes: Iterable[Shape]) -> bool:
    """Whether a value of these shapes has a sensitive part."""
    return any(shape.holds for shape in shapes)


def hide(value: Any, shapes: Collection[Shape]) -> Any:
    """The JSON value with its sensitive parts replaced by `***`, and with them what does not have its type's shape."""
    if any(shape.whole for shape in shapes):
        return HIDDEN
    if value is None or not holds(shapes):
        return value
    if isinstance(value, Mapping):
        return {name: hide(part, inner) if (inner := _at(shapes, name)) else HIDDEN for name, part in value.items()}
    if isinstance(value, list | tuple) and (inner := _elements(shapes)):
        return [hide(part, inner) for part in value]
    return HIDDEN


def sensitive_values(value: Any, shapes: Collection[Shape]) -> Iterator[Any]:
    """Texts and numbers in the parts that `hide` replaces."""
    if value is None or not holds(shapes):
        return
    if any(shape.whole for shape in shapes):
        yield from scalars(value)
    elif isinstance(value, Mapping):
        for name, part in value.items():
            inner = _at(shapes, name)
            yield from sensitive_values(part, inner) if inner else scalars(part)
    elif isinstance(value, list | tuple) and (inner := _elements(shapes)):
        for part in value:
            yield from sensitive_values(part, inner)
    else:
        yield from scalars(value)


def hide_path(path: Sequence[str | int], shapes: Shapes) -> tuple[str | int, ...]:
    """Path of a part of a value as far as it may be shown: the names in a sensitive object are sensitive, too."""
    for count, name in enumerate(path, 1):
        # A path also has the names of a union's members, which are not parts of the value.
        shapes = (_elements(shapes) if isinstance(name, int) else _at(shapes, name)) or shapes
        if any(shape.whole for shape in shapes):
            return tuple(path[:count])
    return tuple(path)


def scalars(value: Any, *, names: bool = True) -> Iterator[Any]:
    """Texts and numbers in a JSON value, and the names in its objects."""
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, Mapping):
            waiting += [*part.values(), *(part.keys() if names else ())]
        elif isinstance(part, list | tuple):
            waiting += part
        elif part is not None and not isinstance(part, bool):
            yield part


def _at(shapes: Iterable[Shape], name: Any) -> Shapes:
    """Shapes of an object's value under this name; empty if none of the shapes knows the name."""
    inner: Shapes = []
    for shape in shapes:
        inner += (shape.fields or {}).get(name, ())
        inner += shape.values or ()
    return inner


def _elements(shapes: Iterable[Shape]) -> Shapes:
    return [inner for shape in shapes for inner in shape.each or ()]


def _marked(shapes: Shapes) -> Shapes:
    """The same shapes, with `holds` set in all that they are made of. They may contain themselves."""
    every: dict[int, Shape] = {}
    waiting = list(shapes)
    while waiting:
        shape = waiting.pop()
        if id(shape) not in every:
            every[id(shape)] = shape
            waiting.extend(shape.parts())
    changed = True
    while changed:
        changed = False
        for shape in every.values():
            if not shape.holds and any(part.holds for part in shape.parts()):
                shape.holds = changed = True
    return shapes


_WRAPPERS = ("Required", "NotRequired", "ReadOnly", "Final", "ClassVar")


class _Reader:
    """Reads annotations. A class is read once, so that it may refer to itself."""

    def __init__(self) -> None:
        self._classes: dict[Any, Shape] = {}

    def read(self, annotation: Any, name: str) -> Shapes:
        """Shapes of an annotation. Raises ValueError: `Sensitive` is where it has no effect."""
        origin, arguments = get_origin(annotation), get_args(annotation)
        if isinstance(annotation, str | ForwardRef):  # it cannot be resolved, so its text must do
            return [_WHOLE if "Sensitive" in str(annotation) else _PLAIN]
        if origin is Annotated:
            return [_WHOLE] if SENSITIVE in arguments[1:] else self.read(arguments[0], name)
        if hasattr(annotation, "__value__"):  # type X = …, and X[int]
            value = annotation.__value__
            return self.read(value[arguments] if arguments else value, name)
        if hasattr(annotation, "__supertype__"):  # NewType
            return self.read(annotation.__supertype__, name)
        if origin is Union or origin is UnionType:
            return [shape for argument in arguments for shape in self.read(argument, name)]
        if origin is Literal:
            return [_PLAIN]
        if getattr(origin, "_name", None) in _WRAPPERS:
            return self.read(arguments[0], name)
        cls = origin if isinstance(origin, type) else annotation
        if arguments and isinstance(cls, type) and not _has_fields(cls):
            return [self._container(annotation, cls, arguments, name)]
        if isinstance(cls, type) and _has_fields(cls):
            return self._class(annotation, cls, name)
        self._refuse_marks(arguments, name)
        return [_PLAIN]

    def _container(self, annotation: Any, cls: type, arguments: tuple[Any, ...], name: str) -> Shape:
        if issubclass(cls, Mapping) and len(arguments) == 2:
            if holds(_marked(self.read(arguments[0], name))):
                raise ValueError(
                    f"{name} has Sensitive in the keys of a mapping, which are shown; write Sensitive[dict[…]] around "
                    "the whole, or make it a list"
                )
            return Shape(values=self.read(arguments[1], name))
        if issubclass(cls, Collection) and (len(arguments) == 1 or issubclass(cls, tuple)):
            elements = [argument for argument in arguments if argument is not Ellipsis]
            return Shape(each=[shape for element in elements for shape in self.read(element, name)])
        self._refuse_marks(arguments, f"{name}, a {cls.__name__},")
        return _PLAIN

    def _refuse_marks(self, arguments: Iterable[Any], name: str) -> None:
        """Refuse what is marked in the arguments of a type that is not known here."""
        for argument in arguments:
            inner = argument if isinstance(argument, list) else [argument]
            if any(holds(_marked(self.read(part, name))) for part in inner):
                raise ValueError(
                    f"{name} has Sensitive inside a type of which Penstock does not know the parts; write "
                    "Sensitive[…] around the whole annotation"
                )

    def _class(self, annotation: Any, cls: type, name: str) -> Shapes:
        earlier: Shape | None = self._classes.get(annotation)
        if earlier is not None:
            return [earlier]
        shape = self._classes[annotation] = Shape(fields={})
        assert shape.fields is not None
        if issubclass(cls, RootModel):
            root = self._field(cls.model_fields["root"], f"{name}.root")
            shape.fields = None
            # A shape of its own represents a union of them, since the class may refer to itself.
            shape.whole = shape.holds = any(inner.whole for inner in root)
            for inner in root:
                shape.fields = {**(shape.fields or {}), **inner.fields} if inner.fields else shape.fields
                shape.each = [*(shape.each or []), *inner.each] if inner.each else shape.each
                shape.values = [*(shape.values or []), *inner.values] if inner.values else shape.values
        elif issubclass(cls, BaseModel):
            self._model(shape.fields, cls, name)
        else:
            for field_name, part in _hints(cls, get_args(annotation)).items():
                shape.fields[field_name] = self.read(part, f"{name}.{field_name}")
            if issubclass(cls, tuple):
                shape.each = [inner for shapes in shape.fields.values() for inner in shapes]
        return [shape]

    def _model(self, fields: dict[str, Shapes], model: type[BaseModel], name: str) -> None:
        for field_name, info in model.model_fields.items():
            shapes = self._field(info, f"{name}.{field_name}")
            for wire_name, nested in {**_names(info), field_name: False}.items():
                # An alias into an object is of a part of it, and the rest is not known.
                named = [_WHOLE] if nested and holds(_marked(shapes)) else [_PLAIN] if nested else shapes
                fields[wire_name] = [*fields.get(wire_name, []), *named]
        for field_name, computed in model.model_computed_fields.items():
            shapes = self.read(computed.return_type, f"{name}.{field_name}")
            fields[field_name] = fields[computed.alias or field_name] = shapes
        for base in model.__mro__:
            if "Sensitive" in str(vars(base).get("__annotations__", {}).get("__pydantic_extra__", "")):
                fields.setdefault("", []).append(_WHOLE)  # no field has this name: all unknown ones are hidden

    def _field(self, info: FieldInfo, name: str) -> Shapes:
        return [_WHOLE] if SENSITIVE in info.metadata else self.read(info.annotation, name)


def _has_fields(cls: type) -> bool:
    is_named_tuple = issubclass(cls, tuple) and hasattr(cls, "_fields")
    is_typed_dict = issubclass(cls, dict) and hasattr(cls, "__total__")
    return issubclass(cls, BaseModel) or dataclasses.is_dataclass(cls) or is_typed_dict or is_named_tuple


def _hints(cls: type, arguments: Sequence[Any]) -> dict[str, Any]:
    try:
        hints = get_type_hints(cls, include_extras=True)
    except Exception:  # a name that is not defined yet; the text of the annotation must do
        hints = {
            name: text for base in reversed(cls.__mro__) for name, text in vars(base).get("__annotations__", {}).items()
        }
    parameters = dict(zip(getattr(cls, "__parameters__", ()), arguments, strict=False))
    return {name: parameters.get(hint, hint) if isinstance(hint, TypeVar) else hint for name, hint in hints.items()}


def _names(info: FieldInfo) -> dict[str, bool]:
    """Other names of a field on the wire; True for the name of an object that it is a part of."""
    choices = (
        info.validation_alias.choices if isinstance(info.validation_alias, AliasChoices) else [info.validation_alias]
    )
    names: dict[str, bool] = {}
    for alias in (info.alias, info.serialization_alias, *choices):
        if isinstance(alias, AliasPath):
            names[str(alias.path[0])] = len(alias.path) > 1
        elif alias is not None:
            names[alias] = False
    return names
