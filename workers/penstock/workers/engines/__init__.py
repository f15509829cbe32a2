"""Engines host a worker: Celery's and Dramatiq's processes, and `inline` in the caller's own.

Each gives the worker what its community expects of a worker of theirs: command line, remote control, events, signals,
middleware. The way of a job is the executor's in all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from penstock.config.errors import ConfigError
from penstock.config.settings import Settings

if TYPE_CHECKING:
    from penstock.workers.engines.renewal.link import ParentLink

ENGINES = ("celery", "dramatiq")


def prepare(engine: str) -> None:
    """Put in place what handler modules may ask for when they are imported: Dramatiq's global broker.

    Raises:
        ConfigError: the engine is unknown.
    """
    if engine not in ENGINES:
        raise ConfigError(f"unknown engine {engine!r}; use one of {', '.join(ENGINES)}")
    if engine == "dramatiq":
        from penstock.workers.engines.dramatiq import get_broker

        get_broker()


def run_worker(
    engine: str,
    settings: Settings,
    *,
    queues: Sequence[str],
    concurrency: int | None = None,
    name: str | None = None,
    log_level: str = "INFO",
    parent: ParentLink | None = None,
) -> int:
    """Run a worker in this process until SIGTERM, SIGINT or a remote shutdown, then drain it. Returns the exit code.

    Arguments:
        parent: of a process that renews itself (`max_jobs`, `max_memory`).

    Raises:
        ConfigError: the engine is unknown; KindError, LedgerUnavailable: the worker cannot boot.
    """
    prepare(engine)
    if engine == "celery":
        from penstock.workers.engines.celery.worker import run_worker as run
    else:
        from penstock.workers.engines.dramatiq.worker import run_worker as run
    return run(settings, queues=queues, concurrency=concurrency, name=name, log_level=log_level, parent=parent)
