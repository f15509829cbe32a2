"""RQ's queues: the dispatcher moves their jobs into ours, and workers run them by RQ's own code."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from penstock.config.errors import ConfigError
from penstock.config.sections.values import listed
from penstock.config.settings import Settings
from penstock.schemas.jobs.kind import NAME, reserved_queue
from penstock.workers.engines.rq.job import job_class
from penstock.workers.executor.attempt.child.parent import call_first

if TYPE_CHECKING:
    from penstock.workers.dispatcher.dispatcher import OpenService

__all__ = ["declare"]


def declare(*queues: str) -> None:
    """Register the kinds of RQ's queues, for processes that show their jobs. It needs no rq.

    Raises:
        KindError: a `Job` has the kind of one, or a kind cannot have the name.
    """
    for queue in queues:
        job_class(queue)


def adopt(queues: str, settings: Settings) -> list[str]:
    """Let this worker run RQ's jobs. Returns the names of the queues, which are RQ's and ours.

    Arguments:
        queues: names, as `high,default`.

    Raises:
        ConfigError: rq is not installed, a queue of ours cannot have a name, or no URL says where RQ's Redis is.
        KindError: a `Job` has the kind of one.
    """
    names = _names(queues)
    from penstock.workers.engines.rq.connection import connect
    from penstock.workers.engines.rq.handler import handle

    connect(settings).close()  # a wrong URL ends the start, and not each job

    handle(names)
    call_first(f"{handle.__module__}:{handle.__name__}", names)
    return names


def open_intake(queues: str) -> OpenService:
    """The dispatcher's service that moves RQ's jobs into our queues. Raises ConfigError, as `adopt`."""
    names = _names(queues)
    from penstock.workers.engines.rq.intake import RqQueues

    return lambda settings, database: RqQueues(settings, database, names)


def split(queues: str) -> list[str]:
    """`high,default` → the names in it. Raises ConfigError: one cannot be a queue of ours."""
    names = listed(queues)
    if not names:
        raise ConfigError("--rq takes the names of RQ's queues, as --rq high,default")
    for name in names:
        reason = reserved_queue(name) if NAME.fullmatch(name) else "has other characters than A-Z a-z 0-9 _ . : -"
        if reason is not None:
            raise ConfigError(f"--rq: no queue of Penstock's can be called {name!r}: it {reason}; use another of RQ's")
    return names


def _names(queues: str) -> list[str]:
    names = split(queues)
    try:
        import rq  # noqa: F401
    except ModuleNotFoundError:
        raise ConfigError("--rq: rq is missing: pip install 'penstock[rq]'") from None
    for name in ("rq.worker", "rq.job"):
        logging.getLogger(name).setLevel(logging.WARNING)  # they have two lines for each job
    return names
