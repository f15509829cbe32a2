"""Types of values: of a report's parameters and a sync's columns, time zones, URLs and sizes."""

from __future__ import annotations

import re
from datetime import date, datetime
from decimal import Decimal
from typing import Annotated, Any, Literal
from urllib.parse import SplitResult, urlsplit
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

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


def is_http(url: SplitResult) -> bool:
    return url.scheme in ("http", "https") and bool(url.hostname)


def _http_url(value: str) -> str:
    if not is_http(urlsplit(value)):
        raise ValueError("use an http:// or https:// URL")
    return value


HttpUrl = Annotated[str, AfterValidator(_http_url)]
"""A URL with a host, kept as text."""

_UNITS = {"": 1, "K": 1000, "M": 1000**2, "G": 1000**3, "T": 1000**4}
_UNITS |= {"KI": 1024, "MI": 1024**2, "GI": 1024**3, "TI": 1024**4}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*((?:[KMGT]I?)?)B?")


def read_size(value: object) -> int:
    """`"512MB"`, `"1GiB"`, `"1.5G"` or a number, as bytes.

    Raises:
        ValueError: it is not a size.
    """
    match = _SIZE.fullmatch(str(value).strip().upper()) if isinstance(value, int | str) else None
    try:
        if match is not None:
            return int(float(match[1]) * _UNITS[match[2]])
    except OverflowError:
        pass
    raise ValueError(f"{value!r} is not a size; write 512MB, 1GiB or a number of bytes")


Size = Annotated[int, BeforeValidator(read_size)]
"""A number of bytes, which may be written with a unit."""


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


def listed(text: str) -> list[str]:
    """`a, b` → its names, each once, without those that are empty."""
    return list(dict.fromkeys(name for name in map(str.strip, text.split(",")) if name))
