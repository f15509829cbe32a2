"""Logging of Penstock's own processes: readable lines, or JSON for collectors. A web backend's logging is its own."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

from penstock.config.errors import ConfigError

EXTRAS = ("job_id", "attempt", "kind", "queue", "worker", "tenant")
"""Attributes of a record that are shown when they are there, such as those of `ctx.log`."""

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


def setup_logging(level: str = "INFO", fmt: str | None = None) -> None:
    """Send every log record of this process to stderr. Replaces what was set up before.

    Arguments:
        fmt: `text` or `json`; None: as `PENSTOCK_LOG` says, else `text`.

    Raises:
        ConfigError: the level or format is not one of these.
    """
    from structlog.dev import ConsoleRenderer, plain_traceback
    from structlog.processors import JSONRenderer, TimeStamper, format_exc_info
    from structlog.stdlib import ExtraAdder, ProcessorFormatter, add_log_level, add_logger_name

    level = level.upper()
    if level not in LEVELS:
        raise ConfigError(f"log level {level!r}: use one of {', '.join(LEVELS)}")
    fmt = fmt or os.environ.get("PENSTOCK_LOG") or "text"
    render: list[Any]
    if fmt == "json":
        render = [format_exc_info, JSONRenderer(default=str)]
    elif fmt == "text":
        # The tracebacks of rich show local variables, and with them what is sensitive.
        render = [ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain_traceback, pad_event_to=0)]
    else:
        raise ConfigError(f"log format {fmt!r} (PENSTOCK_LOG): use text or json")
    before: list[Any] = [add_log_level, add_logger_name, ExtraAdder(allow=EXTRAS), TimeStamper(fmt="iso", utc=True)]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        ProcessorFormatter(foreign_pre_chain=before, processors=[ProcessorFormatter.remove_processors_meta, *render])
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
