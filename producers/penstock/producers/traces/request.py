"""The trace of this context: that of the active OpenTelemetry span, of the request, or of the job that runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar, Token

from penstock.config.loaded import loaded
from penstock.schemas.wire.traceparent import read_traceparent

_inherited: ContextVar[str | None] = ContextVar("penstock_traceparent", default=None)


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
        _inherited.reset(token)


def follow(header: str | None) -> Token[str | None]:
    """`traced` for the rest of this context, where each request has one of its own."""
    return _inherited.set(read_traceparent(header))


def set_inherited(traceparent: str) -> None:
    """Have the rest of this context belong to the trace of a job that runs."""
    _inherited.set(traceparent)


def inherited_traceparent() -> str | None:
    """Traceparent of the request or of the job that runs; None: there is neither."""
    return _inherited.get()


def current_traceparent() -> str | None:
    """Traceparent of the active OpenTelemetry span, else of the request or job; None: there is none."""
    if (telemetry := loaded("opentelemetry.trace")) is not None:
        span = telemetry.get_current_span().get_span_context()
        if span.is_valid:
            return f"00-{span.trace_id:032x}-{span.span_id:016x}-{span.trace_flags:02x}"
    return _inherited.get()
