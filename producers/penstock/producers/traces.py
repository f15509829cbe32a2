"""The trace that jobs enqueued here belong to, as a W3C `traceparent`. https://www.w3.org/TR/trace-context/"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar, Token

__all__ = ["current_traceparent", "follow", "traced"]

_FORM = re.compile(r"(?!ff)([0-9a-f]{2})(-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2})(-.*)?")
_of_request: ContextVar[str | None] = ContextVar("penstock_traceparent", default=None)


@contextmanager
def traced(header: str | None) -> Iterator[None]:
    """Have jobs that are enqueued meanwhile, in this context, carry a request's header `traceparent`.

    Arguments:
        header: as it came; one that is malformed counts as none, as the standard demands.
    """
    token = follow(header)
    try:
        yield
    finally:
        _of_request.reset(token)


def follow(header: str | None) -> Token[str | None]:
    """`traced` for the rest of this context, where each request has one of its own."""
    return _of_request.set(_read(header))


def current_traceparent() -> str | None:
    """Traceparent of the active OpenTelemetry span, else of the request; None: there is neither."""
    if (telemetry := sys.modules.get("opentelemetry.trace")) is not None:
        span = telemetry.get_current_span().get_span_context()
        if span.is_valid:
            return f"00-{span.trace_id:032x}-{span.span_id:016x}-{span.trace_flags:02x}"
    return _of_request.get()


def _read(header: str | None) -> str | None:
    match = _FORM.fullmatch(header.strip()) if header else None
    if match is None or (match[1] == "00" and match[3]):
        return None
    return f"00{match[2]}"  # of a later version, only the fields of version 00
