"""The fields of the job that code runs for, on every record of the log: a context variable, and a filter that reads it.

An application that sets up its own logging adds the filter to its handlers; see docs/logs.md.
"""

from __future__ import annotations

import io
import logging
import traceback
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any, Protocol

from penstock.config.loaded import loaded

__all__ = ["LogFields", "bind", "of_trace"]


class Surroundings(Protocol):
    """Code runs for one of these: a job's `Context`.

    Attributes:
        log_fields: attribute of a record → its value.
        scrub: replaces what is sensitive in a text; `str`: nothing is.
    """

    scrub: Callable[[str], str]

    @property
    def log_fields(self) -> Mapping[str, Any]: ...


SCRUB = "_scrub"
"""Attribute of a record that brings its own scrub, as it may come from a thread without the context."""

_bound: ContextVar[Surroundings | None] = ContextVar("penstock_log_fields", default=None)


def bind(surroundings: Surroundings) -> None:
    """Put the fields of these on what is logged from now on in this context, and in what it starts."""
    _bound.set(surroundings)


def of_trace(traceparent: str | None) -> dict[str, str]:
    """`trace_id` and `span_id` of a W3C traceparent that was checked; empty for None."""
    parts = (traceparent or "").split("-")
    return {"trace_id": parts[1], "span_id": parts[2]} if len(parts) >= 4 else {}


class LogFields(logging.Filter):
    """Adds to each record, as attributes that it does not have, `job_id`, `attempt`, `kind`, `queue`, `tenant` and
    `worker` of the job, and `trace_id` and `span_id` of the current OpenTelemetry span.

    Values of the job's `Sensitive` fields become `***` in the record's text and traceback.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the fields. Always True."""
        if (bound := _bound.get()) is not None:
            for name, value in bound.log_fields.items():
                if name not in record.__dict__:
                    setattr(record, name, value)
        scrub = record.__dict__.pop(SCRUB, None) or (str if bound is None else bound.scrub)
        if scrub is not str:
            _scrub_record(record, scrub)
        if "trace_id" not in record.__dict__:
            for name, value in _span().items():
                setattr(record, name, value)
        return True


def _span() -> dict[str, str]:
    if (telemetry := loaded("opentelemetry.trace")) is None:
        return {}
    span = telemetry.get_current_span().get_span_context()
    return {"trace_id": f"{span.trace_id:032x}", "span_id": f"{span.span_id:016x}"} if span.is_valid else {}


def _scrub_record(record: logging.LogRecord, scrub: Callable[[str], str]) -> None:
    """Replace what is sensitive in a record's text and traceback. What a formatter adds afterwards is not looked at."""
    try:
        text = record.getMessage()
    except Exception:  # its arguments do not fit its text
        text = str(record.msg)
    record.msg, record.args = scrub(text), None
    if record.exc_info and record.exc_info[0] is not None:
        written = io.StringIO()
        traceback.print_exception(*record.exc_info, file=written)
        record.exc_text, record.exc_info = scrub(written.getvalue().rstrip("\n")), None
    elif record.exc_text:
        record.exc_text = scrub(record.exc_text)
