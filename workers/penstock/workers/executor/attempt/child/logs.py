"""Log records of a child: sent through its pipe, and handled by the loggers of its worker, with the job's fields."""

from __future__ import annotations

import logging
import os
from logging.handlers import QueueHandler
from typing import Any

from penstock.config.log_fields import SCRUB
from penstock.workers.executor.attempt.child.pipe import ChildEnd

log = logging.getLogger("penstock.executor")

_PLAIN = (int, float, bool, type(None))

Levels = dict[str, int]
"""Logger name → its level; the root's name is empty."""


def _loggers() -> list[logging.Logger]:
    """The loggers that this process has made, without the root."""
    return [logger for logger in list(logging.root.manager.loggerDict.values()) if isinstance(logger, logging.Logger)]


def levels() -> Levels:
    """The levels that are set in this process."""
    return {"": logging.root.level, **{logger.name: logger.level for logger in _loggers() if logger.level}}


def send_records(pipe: ChildEnd, levels: Levels) -> None:
    """Send what this process logs from now on to its worker, whatever its modules have set up."""
    for logger in _loggers():
        if logger.handlers:
            logger.handlers, logger.propagate = [], True
    logging.root.handlers = [_PipeHandler(pipe)]
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def handle_record(fields: dict[str, Any], job: dict[str, Any]) -> None:
    """Handle a child's record as if this process had logged it: as one of this job, whatever it says itself.

    Arguments:
        job: `Context.log_fields`.

    Raises:
        ValueError: it has no name or no level.
    """
    if not isinstance(fields.get("name"), str) or not isinstance(fields.get("levelno"), int):
        raise ValueError("a record of the log has no name or level")
    record = logging.makeLogRecord({**fields, "args": None, "exc_info": None, **job})
    name = record.name
    while name and not isinstance(logging.root.manager.loggerDict.get(name), logging.Logger):
        name = name.rpartition(".")[0]  # a logger is never freed, so none is made for a child's
    logger = logging.getLogger(name)
    try:
        if logger.isEnabledFor(record.levelno):
            logger.handle(record)
    except Exception:
        log.exception("job %s: a record of its child's log cannot be handled", job["job_id"])


class _PipeHandler(QueueHandler):
    def __init__(self, pipe: ChildEnd) -> None:
        super().__init__(pipe)  # type: ignore[arg-type]  # used by `enqueue` alone
        self._pipe = pipe
        self._stderr = logging.StreamHandler()

    def emit(self, record: logging.LogRecord) -> None:
        if os.getpid() == self._pipe.pid:
            super().emit(record)
        else:
            self._stderr.emit(record)

    def enqueue(self, record: logging.LogRecord) -> None:
        fields = {name: _plain(value) for name, value in record.__dict__.items() if name != SCRUB}  # the worker scrubs
        self._pipe.send({"log": fields})


def _plain(value: Any) -> Any:
    """The value as JSON can hold it: numpy's numbers are floats, and enumerations texts."""
    return value if type(value) in _PLAIN else str(value).encode(errors="backslashreplace").decode()
