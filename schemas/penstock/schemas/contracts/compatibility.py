"""Breaking changes between two JSON Schemas, field by field: what the old one accepts and the new one refuses.

It covers what pydantic writes (JSON Schema 2020-12 without `if`, `not` and the like), and judges as pydantic validates
where the two differ: a list with duplicates is fine for a set. It reports changes that it
cannot judge. The library jsoncompat is alpha and answers yes or no; here each field gets a sentence.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

Schema = Mapping[str, Any]
Rule = Literal["field-removed", "field-required", "field-narrowed"]

_REFS = "#/$defs/"
_FREE_FORMATS = {None, "binary", "byte", "password"}
"""Formats that pydantic does not check."""
_UNCHECKED = {
    *("$defs", "title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"),
    *("discriminator", "uniqueItems", "contentMediaType", "contentEncoding", "const", "type"),
}
_LEAST = ("minLength", "minItems", "minProperties")
_MOST = ("maxLength", "maxItems", "maxProperties")
_COMPARED = {
    *("format", "pattern", "multipleOf", "minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum", *_LEAST, *_MOST),
    *("properties", "required", "additionalProperties", "propertyNames", "prefixItems", "items"),
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """A breaking change: the old schema accepts a value that the new one refuses.

    Attributes:
        path: `lines[].price`, `prices{}` for the values of a mapping; empty for the payload itself.
        reason: for a person, without the path.
    """

    path: str
    rule: Rule
    reason: str


def refusals(old: Schema, new: Schema) -> list[Refusal]:
    """Breaking changes of a payload from the old to the new schema, in the order of the old fields."""
    return list(dict.fromkeys(_Comparison(old, new).compare("", old, new)))


class _Comparison:
    def __init__(self, old: Schema, new: Schema) -> None:
        self.old_root, self.new_root = old, new
        self.under_way: set[tuple[str, str]] = set()

    def compare(self, path: str, old: Schema | bool, new: Schema | bool) -> list[Refusal]:
        # A recursive type comes back to a pair that is being compared: the pair is compatible if the rest is.
        pair = (json.dumps(old, sort_keys=True), json.dumps(new, sort_keys=True))
        if pair in self.under_way or (pair[0] == pair[1] and self.old_root == self.new_root):
            return []
        self.under_way.add(pair)
        try:
            takers = list(_alternatives(new, self.new_root))
            problems = []
            for alternative in _alternatives(old, self.old_root):
                fitting = [taker for taker in takers if _fits(alternative, taker)]
                if not fitting:
                    problems.append(
                        Refusal(path, "field-narrowed", f"accepts {_names(takers)}, no longer {_names([alternative])}")
                    )
                else:
                    verdicts = [list(self._compare_pair(path, alternative, taker)) for taker in fitting]
                    best = min(verdicts, key=len)
                    problems += best
            return problems
        finally:
            self.under_way.discard(pair)

    def _compare_pair(self, path: str, old: Schema, new: Schema) -> Iterator[Refusal]:
        """Compare two alternatives of the same type."""
        say = partial(Refusal, path, "field-narrowed")
        if "const" in new:
            return
        for name in _LEAST:
            if new.get(name, 0) > _length(old, name):
                yield say(f"{name} is {new[name]}, was {_length(old, name) or 'none'}")
        for name in _MOST:
            if name in new and new[name] < _length(old, name):
                yield say(f"{name} is {new[name]}, was {old.get(name, 'none')}")
        yield from map(say, _bounds(old, new))
        if new.get("pattern") not in (None, old.get("pattern")):
            yield say(f"must match {new['pattern']!r}")
        if new.get("format") not in _FREE_FORMATS | {old.get("format")}:
            yield say(f"must be a {new['format']}")
        for name in sorted(new.keys() - _UNCHECKED - _COMPARED):
            if not name.startswith("x-") and new[name] != old.get(name):
                yield say(f"{name!r} is new or changed, which this check cannot judge")
        if _type(new) == "object":
            yield from self._objects(path, old, new)
        elif _type(new) == "array":
            yield from self._arrays(path, old, new)

    def _objects(self, path: str, old: Schema, new: Schema) -> Iterator[Refusal]:
        before, after = old.get("properties", {}), new.get("properties", {})
        rest = new.get("additionalProperties", True)
        for name, schema in before.items():
            if name in after:
                yield from self.compare(_join(path, name), schema, after[name])
            elif rest is False:
                yield Refusal(_join(path, name), "field-removed", "is removed: a payload that has it is refused")
            else:
                yield from self.compare(_join(path, name), schema, rest)
        for name in new.get("required", ()):
            if name not in before:
                yield Refusal(_join(path, name), "field-required", "is new and required, without a default")
            elif name not in old.get("required", ()):
                yield Refusal(_join(path, name), "field-required", "is required, was optional")
        others = old.get("additionalProperties", True)
        if others is not False and rest is False:
            yield Refusal(path, "field-narrowed", "refuses unknown fields, used to accept them")
        elif others is not False:
            yield from self.compare(path + "{}", others, rest)
        if "propertyNames" in new:
            yield from self.compare(path + "{}", old.get("propertyNames", {"type": "string"}), new["propertyNames"])

    def _arrays(self, path: str, old: Schema, new: Schema) -> Iterator[Refusal]:
        before, after = old.get("prefixItems", ()), new.get("prefixItems", ())
        positions, most = max(len(before), len(after)), old.get("maxItems", float("inf"))
        for index in range(min(positions, most)):
            yield from self.compare(f"{path}[{index}]", _item(old, before, index), _item(new, after, index))
        if most > positions:
            yield from self.compare(path + "[]", old.get("items", True), new.get("items", True))


def _alternatives(schema: Schema | bool, root: Schema) -> Iterator[Schema]:
    """The schema without references, unions, lists of types and enumerations: each of what it may be."""
    if isinstance(schema, bool):
        yield from [{}] if schema else []
        return
    own = {name: value for name, value in schema.items() if name not in ("$ref", "allOf", "anyOf", "oneOf")}
    if reference := schema.get("$ref"):
        yield from _alternatives({**root.get("$defs", {}).get(reference.removeprefix(_REFS), {}), **own}, root)
    elif parts := schema.get("allOf"):
        merged: dict[str, Any] = {}
        for part in (*parts, own):
            for alternative in _alternatives(part, root):
                merged.update(alternative)
        yield merged
    elif union := schema.get("anyOf") or schema.get("oneOf"):
        for member in union:
            yield from _alternatives(member if isinstance(member, bool) else {**own, **member}, root)
    elif isinstance(types := schema.get("type"), list):
        for name in types:
            yield from _alternatives({**schema, "type": name}, root)
    elif "enum" in schema:
        for value in schema["enum"]:
            yield {"const": value}
    else:
        yield schema


def _fits(old: Schema, new: Schema) -> bool:
    if "const" in new:
        return "const" in old and json.dumps(old["const"]) == json.dumps(new["const"])
    was, now = _type(old), _type(new)
    return now is None or was == now or (was == "integer" and now == "number")


def _type(schema: Schema) -> str | None:
    """None: anything."""
    if "const" not in schema:
        return schema.get("type") or ("object" if "properties" in schema else None)
    match schema["const"]:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
    return "object"


def _names(schemas: Sequence[Schema]) -> str:
    if not schemas:
        return "nothing"
    return " or ".join(
        dict.fromkeys(
            json.dumps(schema["const"]) if "const" in schema else _type(schema) or "anything" for schema in schemas
        )
    )


def _length(old: Schema, name: str) -> float:
    """The old limit of this name; for a constant, its length."""
    if isinstance(old.get("const"), str):
        return len(old["const"]) if name.endswith("Length") else 0
    return old.get(name, 0 if name in _LEAST else float("inf"))  # type: ignore[no-any-return]


def _bounds(old: Schema, new: Schema) -> Iterator[str]:
    if (now := _lowest(new)) > (was := _lowest(old)):
        yield f"is {_limit('at least', 'more than', now)}, was {_limit('at least', 'more than', was)}"
    if (now := _lowest(new, -1)) > (was := _lowest(old, -1)):
        yield f"is {_limit('at most', 'less than', now, -1)}, was {_limit('at most', 'less than', was, -1)}"
    step, before = new.get("multipleOf"), old.get("multipleOf")
    if step is not None and (before is None or before % step):
        yield f"must be a multiple of {step}"


def _lowest(schema: Schema, sign: int = 1) -> tuple[float, bool]:
    """The lower bound and whether it is itself excluded; of the upper one, with `sign=-1`, both mirrored."""
    including, excluding = ("minimum", "exclusiveMinimum") if sign == 1 else ("maximum", "exclusiveMaximum")
    if isinstance(value := schema.get("const"), int | float):
        return sign * value, False
    bounds = [(sign * schema[including], False)] if including in schema else []
    if excluding in schema:
        limit = sign * schema[excluding]
        bounds.append((limit + 1, False) if schema.get("type") == "integer" else (limit, True))
    return max(bounds, default=(float("-inf"), False))


def _limit(including: str, excluding: str, bound: tuple[float, bool], sign: int = 1) -> str:
    value, excluded = bound
    return "anything" if value == float("-inf") else f"{excluding if excluded else including} {sign * value}"


def _item(schema: Schema, prefix: Sequence[Schema], index: int) -> Schema | bool:
    return prefix[index] if index < len(prefix) else schema.get("items", True)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
