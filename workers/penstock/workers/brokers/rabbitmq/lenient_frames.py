"""Lenient frames: AMQP messages of others that py-amqp cannot read, with text that is not UTF-8 or times out of range.

py-amqp raises in the middle of a frame, and the message comes again on the next connection, and the next. With this,
such a message is delivered like any other, with its raw properties under one header of ours.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import pack, unpack_from
from typing import Any

from amqp import spec
from amqp.method_framing import frame_handler
from amqp.serialization import dumps
from pydantic_core import from_json, to_json

from penstock.schemas.wire.codec import KEPT_BYTES, MESSAGE_BYTES

UNREADABLE = "unreadable_properties"
"""The header with the raw properties; bytes that are not UTF-8 are escaped."""

_METHOD_ID, _CONTENT_HEADER = 4, 12  # bytes in front of a method's arguments, and of a message's properties
_BODY_SIZE = 4  # the position of the body's size in front of the properties
_TAG_AND_FLAG = 9
_LONGEST = 4000


def read_leniently(connection: Any, max_message_bytes: int = MESSAGE_BYTES) -> None:
    """Make a connection deliver messages that it cannot read. This costs a readable frame two calls.

    Arguments:
        max_message_bytes: of a larger body only the beginning is kept, as it comes in, and the message has its size as
            `full_size`.
    """
    large: dict[int, _LargeBody] = {}  # by channel
    deliver: Callable[..., Any] = connection.on_inbound_method

    def on_method(channel: int, method: tuple[int, int], payload: bytes, content: Any) -> None:
        if content is not None and (body := large.pop(channel, None)) is not None:
            content.full_size = body.full_size
        if method == spec.Basic.GetOk:  # cleaned first: a failed try would forget the caller that waits for it
            payload = _clean(payload, _METHOD_ID)
        try:
            deliver(channel, method, payload, content)
        except UnicodeDecodeError:
            if method != spec.Basic.Deliver:
                raise
            deliver(channel, method, _clean(payload, _METHOD_ID + 1 + payload[_METHOD_ID]), content)

    read = frame_handler(connection, on_method)

    def on_frame(frame: tuple[int, int, bytes]) -> Any:
        kind, channel, buffer = frame
        if kind == 3 and channel in large:
            return read((kind, channel, large[channel].kept)) if large[channel].is_complete_with(buffer) else False
        if kind != 2:
            return read(frame)
        [full_size] = unpack_from(">Q", buffer, _BODY_SIZE)
        if full_size > max_message_bytes:
            large[channel] = _LargeBody(full_size)
            buffer = buffer[:_BODY_SIZE] + pack(">Q", KEPT_BYTES) + buffer[_CONTENT_HEADER:]
            frame = (kind, channel, buffer)
        try:
            return read(frame)
        except Exception:  # as many as there are ways to be wrong; it still waits for the properties
            return read((kind, channel, _readable(bytes(buffer))))

    connection.on_inbound_frame = on_frame


class _LargeBody:
    """Body over the limit, while its frames come in.

    Attributes:
        kept: its beginning.
    """

    def __init__(self, full_size: int) -> None:
        self.full_size, self.kept = full_size, b""
        self._received = 0

    def is_complete_with(self, part: bytes) -> bool:
        if (missing := KEPT_BYTES - len(self.kept)) > 0:
            self.kept += bytes(part[:missing])
        self._received += len(part)
        return self._received >= self.full_size


def plain(headers: dict[Any, Any]) -> dict[str, Any]:
    """The headers as JSON has them: AMQP's also hold times, decimals, bytes, and names that are not text."""
    try:
        plain: dict[str, Any] = from_json(to_json(headers, bytes_mode="base64"))
    except ValueError:  # a lone surrogate
        return {UNREADABLE: repr(headers)[:_LONGEST]}
    return plain


def _clean(payload: bytes, at: int) -> bytes:
    """The arguments of a delivery, with question marks for what is not ASCII in its exchange and routing key.

    Arguments:
        at: the position of its delivery tag.
    """
    if payload.isascii():
        return payload
    cleaned = bytearray(payload)
    at += _TAG_AND_FLAG
    for _ in range(2):
        end = at + 1 + cleaned[at]
        try:
            cleaned[at + 1 : end].decode()
        except UnicodeDecodeError:
            cleaned[at + 1 : end] = bytes(byte if byte < 0x80 else ord("?") for byte in cleaned[at + 1 : end])
        at = end
    return bytes(cleaned)


def _readable(header: bytes) -> bytes:
    """The header frame with one header in place of all properties."""
    text = header[_CONTENT_HEADER:].decode("utf-8", "backslashreplace")[:_LONGEST]
    return header[:_CONTENT_HEADER] + pack(">H", 0x2000) + bytes(dumps("F", [{UNREADABLE: text}]))
