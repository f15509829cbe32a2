"""CloudEvents 1.0 over HTTP: structured, binary and batched content.

https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/http-protocol-binding.md
https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from email.message import Message
from typing import Annotated, Any, Literal
from urllib.parse import unquote

from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    ValidationError,
    model_validator,
)
from pydantic_core import from_json

from penstock.config.errors import InvalidEvent
from penstock.schemas.events.signatures import header_text

STRUCTURED = "application/cloudevents+json"
BATCH = "application/cloudevents-batch+json"
_PREFIX = "ce-"
_NAME = re.compile(r"[a-z0-9]+")
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)")
_CONTROL = r"^[^\x00-\x1f\x7f-\x9f]+$"

Text = Annotated[StrictStr, Field(min_length=1, max_length=2048, pattern=_CONTROL)]
"""An attribute's text; the standard sets no bound, but senders are to keep whole events under 64 KiB."""
UriReference = Annotated[
    StrictStr, Field(min_length=1, max_length=2048, pattern=r"^[^\x00-\x20\x7f-\x9f<>\"{}|\\^`]+$")
]


def _timestamp(value: object) -> object:
    if not isinstance(value, datetime | str) or (isinstance(value, str) and not _RFC3339.fullmatch(value)):
        raise ValueError("a time is written as 2026-01-31T12:00:00Z (RFC 3339)")
    return value


class Event(BaseModel):
    """Something that happened. `source` and `id` together name it: an event with both again is the same event.

    Attributes:
        extensions: attributes that are not in the standard, such as `traceparent`.
        data: JSON values, text, or bytes where the content type is neither; None: no data.
    """

    model_config = ConfigDict(frozen=True)

    specversion: Literal["1.0"]
    id: Text
    source: UriReference
    type: Text
    subject: Text | None = None
    time: Annotated[AwareDatetime, BeforeValidator(_timestamp)] | None = None
    datacontenttype: Text | None = None
    dataschema: UriReference | None = None
    extensions: dict[str, StrictBool | StrictInt | Text] = Field(default_factory=dict)
    data: Any = None

    @model_validator(mode="before")
    @classmethod
    def _gather_extensions(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or "extensions" in values:
            return values
        standard = {name: value for name, value in values.items() if name in cls.model_fields}
        return {**standard, "extensions": {name: value for name, value in values.items() if name not in standard}}

    def document(self) -> dict[str, Any]:
        """The event as one JSON object, with the extensions next to the standard attributes; rules pick from it."""
        time = None if self.time is None else self.time.isoformat()
        return {**self.extensions, **self.model_dump(exclude={"extensions", "time"}), "time": time}


def parse(headers: Mapping[str, str], body: bytes) -> list[Event | InvalidEvent]:
    """Request → events. In a batch, each event is read by itself, and may be an error instead.

    Arguments:
        headers: by their lower-case names.

    Raises:
        InvalidEvent: the request holds no events, or a single one that is wrong; names the attribute.
    """
    header = headers.get("content-type", "")
    content_type = _media_type(header)
    if content_type.startswith("application/cloudevents"):
        if content_type not in (STRUCTURED, BATCH):
            raise InvalidEvent("content-type", f"{content_type} is not understood; send {STRUCTURED} or {BATCH}")
        document = _json(body, "the body")
        if content_type == STRUCTURED:
            return [read_event(document)]
        if not isinstance(document, list) or not all(isinstance(item, dict) for item in document):
            raise InvalidEvent("the body", "a batch is a JSON array of objects")
        return [_event_or_error(item) for item in document]
    if f"{_PREFIX}specversion" in headers:
        return [_validated(dict(_binary(headers, header, content_type, body)))]
    raise InvalidEvent("content-type", f"neither {STRUCTURED} nor {BATCH}, and no header ce-specversion")


def read_event(document: Any) -> Event:
    """JSON format → event.

    Raises:
        InvalidEvent: it is not an event; names the attribute.
    """
    if not isinstance(document, dict):
        raise InvalidEvent("the body", "an event is a JSON object")
    values = {name: value for name, value in document.items() if value is not None or name == "data"}
    if (encoded := values.pop("data_base64", None)) is not None:
        if "data" in values:
            raise InvalidEvent("data_base64", "data is there too; give one of them")
        try:
            data = base64.b64decode(encoded, validate=True)
        except (binascii.Error, TypeError, ValueError):
            raise InvalidEvent("data_base64", "not base64") from None
        content_type = values.get("datacontenttype")
        values["data"] = _data(data, _media_type(content_type) if isinstance(content_type, str) else "")
    return _validated(values)


def _event_or_error(document: Any) -> Event | InvalidEvent:
    try:
        return read_event(document)
    except InvalidEvent as error:
        return error


def _binary(headers: Mapping[str, str], header: str, content_type: str, body: bytes) -> Iterator[tuple[str, Any]]:
    for name, value in headers.items():
        if name.startswith(_PREFIX):
            name = name.removeprefix(_PREFIX)
            if name in ("data", "datacontenttype", "data_base64"):
                raise InvalidEvent(name, "has no header of its own: it is the body, or its Content-Type")
            try:
                yield name, unquote(header_text(value).strip('"'), errors="strict")
            except UnicodeDecodeError:
                raise InvalidEvent(name, "its header is not UTF-8, raw or percent-encoded") from None
    if header:
        yield "datacontenttype", header
    if body:
        yield "data", _data(body, content_type)


def _data(data: bytes, content_type: str) -> Any:
    if content_type in ("", "application/json", "text/json") or content_type.endswith("+json"):
        return _json(data, "data")
    if content_type.startswith("text/"):
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise InvalidEvent("data", f"not UTF-8: {error}") from None
    return data


def _validated(values: dict[str, Any]) -> Event:
    for name in values:
        if not _NAME.fullmatch(name):
            raise InvalidEvent(name[:100], "names of attributes are lower-case letters and digits")
    try:
        return Event.model_validate({name: value for name, value in values.items() if name != "extensions"})
    except ValidationError as error:
        item = error.errors(include_url=False, include_input=False)[0]
        path = [str(part) for part in item["loc"] if part != "extensions"]
        raise InvalidEvent(path[0] if path else "the body", item["msg"].removeprefix("Value error, ")) from None


def _json(text: bytes, attribute: str) -> Any:
    try:
        return from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidEvent(attribute, f"not JSON: {error}") from None


def _media_type(header: str) -> str:
    message = Message()
    message["content-type"] = header
    charset = message.get_param("charset", "utf-8")
    if not isinstance(charset, str) or charset.lower() not in ("utf-8", "us-ascii"):
        raise InvalidEvent("content-type", f"charset {charset} is not understood; send UTF-8")
    return message.get_content_type() if header else ""
