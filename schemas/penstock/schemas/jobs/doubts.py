"""Doubts about a kind: whether a job that was made may have a payload that no worker can read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NONE, SOME, ALL = 0, 1, 2

_CERTAIN = frozenset(
    (
        *("model", "model-fields", "model-field", "typed-dict", "typed-dict-field"),
        *("dataclass", "dataclass-args", "dataclass-field", "list", "tuple", "set", "frozenset", "dict"),
        *("nullable", "union", "tagged-union", "default", "literal", "enum", "str", "bool", "bytes", "none"),
        *("date", "time", "datetime", "timedelta", "decimal", "uuid", "url", "multi-host-url", "is-instance"),
        *("function-before", "function-after", "function-wrap", "chain", "lax-or-strict", "json-or-python"),
        *("definitions", "custom-error"),
    )
)
_OPEN = frozenset(("int", "float", "any", "definition-ref"))
"""Schemas of values that may be too long a number, not finite (it becomes null), or nested too deep."""
_INNER = (
    "schema",
    "fields",
    "items_schema",
    "keys_schema",
    "values_schema",
    "choices",
    "steps",
    "json_schema",
    "python_schema",
    "lax_schema",
    "strict_schema",
    "extras_schema",
    "definitions",
)
_TRUSTED = ("pydantic.", "penstock.")
"""Modules whose validators accept what they have returned."""


def doubts_of(schema: Any) -> int:
    """pydantic-core's schema of a job → whether to check none of its payloads, some (long and deep ones, and those with
    a null) or all."""
    if isinstance(schema, list | tuple):
        return max(map(doubts_of, schema), default=NONE)
    if not isinstance(schema, Mapping):
        return NONE
    type_ = schema.get("type")
    if not isinstance(type_, str):  # fields by name, choices by tag
        return max(map(doubts_of, schema.values()), default=NONE)
    if type_ in _OPEN:
        return SOME
    if type_ not in _CERTAIN or "serialization" in schema or not _is_closed(schema) or not _is_trusted(schema):
        return ALL
    return max((doubts_of(schema[name]) for name in _INNER if name in schema), default=NONE)


def _is_closed(schema: Mapping[str, Any]) -> bool:
    config = schema.get("config") or {}
    return "allow" not in (schema.get("extra_behavior"), config.get("extra_fields_behavior"))


def _is_trusted(schema: Mapping[str, Any]) -> bool:
    if not schema["type"].startswith("function-"):
        return True
    module = getattr(schema["function"]["function"], "__module__", None) or ""
    return module.startswith(_TRUSTED)
