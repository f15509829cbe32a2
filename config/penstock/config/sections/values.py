"""The types of a report's parameters and a sync's columns, the reading of values, and time zones."""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError

ValueType = Literal["str", "int", "float", "decimal", "date", "datetime", "bool"]

_ADAPTERS: dict[str, TypeAdapter[Any]] = {
    "str": TypeAdapter(str, config=ConfigDict(coerce_numbers_to_str=True)),
    # A BIGINT of every database; more would fail there, one row too late.
    "int": TypeAdapter(Annotated[int, Field(ge=-(2**63), lt=2**63)]),
    "float": TypeAdapter(Annotated[float, Field(allow_inf_nan=False)]),
    "decimal": TypeAdapter(Annotated[Decimal, Field(allow_inf_nan=False)]),
    "date": TypeAdapter(date),
    "datetime": TypeAdapter(datetime),
    "bool": TypeAdapter(bool),
}
_EXAMPLES = {"date": " such as 2026-01-31", "datetime": " such as 2026-01-31T12:00:00Z", "bool": ", true or false"}


def _known_zone(value: str) -> str:
    try:
        ZoneInfo(value)
    except Exception as error:
        raise ValueError(f"unknown time zone {value!r}; use an IANA name such as Europe/Berlin") from error
    return value


TimeZone = Annotated[str, AfterValidator(_known_zone)]
"""An IANA time zone that is known here."""


def read_value(value: object, type: ValueType) -> Any:
    """A JSON or TOML value as the Python value of a declared type.

    Text that spells the value is taken (`"7"` for int); a number is taken as seconds since 1970 for date and datetime.

    Raises:
        ValueError: it is not one; the message says what was expected, without the value, which may be sensitive.
    """
    number_for_bool = isinstance(value, bool) and type != "bool"
    try:
        if not number_for_bool:
            return _ADAPTERS[type].validate_python(value)
    except (ValidationError, OverflowError):
        pass
    raise ValueError(f"expected {type}{_EXAMPLES.get(type, '')}, got {_described(value)}")


def _described(value: object) -> str:
    match value:
        case None:
            return "nothing"
        case bool():
            return "a bool"
        case str():
            return "other text"
        case int() | float():
            return "a number that does not fit"
        case _:
            return f"a {value.__class__.__name__}"
