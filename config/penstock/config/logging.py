"""Logging of Penstock's own processes: readable lines, or JSON for collectors. A web backend's logging is its own."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import MutableMapping
from io import StringIO
from typing import Any, TextIO

from penstock.config.errors import ConfigError
from penstock.config.log_fields import LogFields
from penstock.config.printable import printable
from penstock.config.process.imports import without

EXTRAS = (
    *("job_id", "attempt", "kind", "queue", "worker", "tenant", "trace_id", "span_id"),
    *("max_attempts", "next_attempt_at", "outcome", "seconds", "fingerprint", "alike"),
)
"""Attributes of a record that are shown when they are there, such as those of `ctx.log` and of a failure."""

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


LINES = {"lines": True}
"""`extra` of a record whose message has several lines of ours, such as a stack.

In others the ends of lines are escaped like all control characters: an id or an error in a message must not look like a
record of its own."""


def setup_logging(level: str = "INFO", fmt: str | None = None) -> None:
    """Send every log record of this process to stderr. Replaces what was set up before.

    Arguments:
        fmt: `text` or `json`, as in `Settings.log_format`; None: as `PENSTOCK_LOG_FORMAT` says, else `text`.

    Raises:
        ConfigError: the level or format is not one of these.
    """
    with without("rich"):  # 4 MiB, for tracebacks that are not used here
        from structlog.dev import ConsoleRenderer
        from structlog.processors import JSONRenderer, TimeStamper, format_exc_info
        from structlog.stdlib import ExtraAdder, ProcessorFormatter, add_log_level, add_logger_name

    level = level.upper()
    if level not in LEVELS:
        raise ConfigError(f"log level {level!r}: use one of {', '.join(LEVELS)}")
    fmt = fmt or os.environ.get("PENSTOCK_LOG_FORMAT") or "text"
    render: list[Any]
    escape: list[Any] = []  # JSON escapes by itself
    if fmt == "json":
        render = [format_exc_info, _move_traceback, JSONRenderer(default=str)]
    elif fmt == "text":
        # The tracebacks of rich show local variables, and with them what is sensitive.
        escape = [_escape, _append_traceback]
        render = [ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=_write_traceback, pad_event_to=0)]
    else:
        raise ConfigError(f"log format {fmt!r} (PENSTOCK_LOG_FORMAT): use text or json")
    extras = ExtraAdder(allow=EXTRAS)
    before: list[Any] = [add_log_level, add_logger_name, extras, _add_traceback, TimeStamper(fmt="iso", utc=True)]
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(LogFields())
    handler.setFormatter(
        ProcessorFormatter(
            foreign_pre_chain=before, processors=[*escape, ProcessorFormatter.remove_processors_meta, *render]
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)


_TRACEBACK = "_traceback"


def _add_traceback(logger: Any, name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Add the traceback of a record that has only its text, which structlog would drop."""
    record = event["_record"]
    if record.exc_text and not record.exc_info:
        event[_TRACEBACK] = record.exc_text
    return event


def _move_traceback(logger: Any, name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Name it as the tracebacks of exceptions."""
    if (text := event.pop(_TRACEBACK, None)) is not None:
        event["exception"] = text
    return event


def _append_traceback(logger: Any, name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Write it below the line."""
    if (text := event.pop(_TRACEBACK, None)) is not None:
        event["exception"] = printable(text, lines=True)
    return event


def _escape(logger: Any, name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Escape the control characters of a record's texts."""
    has_lines = getattr(event["_record"], "lines", False)
    for key, value in event.items():
        if key[0] != "_" and value is not None and not isinstance(value, int | float | tuple):
            event[key] = printable(str(value), lines=has_lines and key == "event")
    return event


def _write_traceback(stream: TextIO, error: Any) -> None:
    """Write a traceback, in whose lines only the error's own text can have control characters."""
    from structlog.dev import plain_traceback

    plain = StringIO()
    plain_traceback(plain, error)
    stream.write(printable(plain.getvalue(), lines=True))
