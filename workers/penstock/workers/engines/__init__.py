"""Engines host a worker: Celery's and Dramatiq's processes, and `inline` in the caller's own.

Each gives the worker what its community expects of a worker of theirs: command line, remote control, events, signals,
middleware. The way of a job is the executor's in all of them.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from penstock.config.errors import ConfigError
from penstock.config.process.imports import without
from penstock.config.settings import Settings
from penstock.producers.senders import scheme
from penstock.workers.engines.monitoring.kombu_connection import import_client

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

    In a thread other than the main one the worker is a guest of this process: it handles no signals and ends with a
    remote shutdown.

    Arguments:
        parent: of a process that renews itself (`max_jobs`, `max_memory`).

    Raises:
        ConfigError: the engine is unknown; KindError, LedgerUnavailable: the worker cannot boot.
    """
    prepare(engine)
    run = _program(engine, settings)
    return run(settings, queues=queues, concurrency=concurrency, name=name, log_level=log_level, parent=parent)


def preload(engine: str, settings: Settings, queues: Sequence[str]) -> None:
    """Import what each of several worker processes will use, before they are forked off this one: they share it.

    What is loaded is exempt from garbage collection from then on, which would write to all of it.
    """
    from penstock.ledger.sql.engine import make_engine
    from penstock.workers.executor.attempt.session import import_sessions
    from penstock.workers.handlers.registry import handlers

    _program(engine, settings)
    if engine == "celery":
        from penstock.workers.engines.celery.app import import_parts

        import_parts()
    import_sessions([handler for handler in handlers if handler.kind.queue in queues], settings.pool)
    broker = scheme(settings.broker_url)
    for module in (f"penstock.workers.brokers.{broker}.consumer", f"penstock.producers.senders.{broker}.sender"):
        importlib.import_module(module)
    for module in ("uvloop", "encodings.idna"):
        with contextlib.suppress(ImportError):  # uvloop is not there for every system
            importlib.import_module(module)
    if "://" in settings.database_url:  # else the worker refuses to start, and says why
        make_engine(settings.database_url).dispose()  # loads its driver, and does not connect
    # It refers to a few thousand names, and each process would write to a page for each of those references.
    getattr(sys, "_clear_internal_caches", sys._clear_type_cache)()
    gc.collect()
    gc.freeze()


def _program(engine: str, settings: Settings) -> Callable[..., int]:
    import_client(settings.broker_url)
    if engine == "celery":
        with without("psutil"):  # Celery would read its memory for a command that these workers do not answer
            from penstock.workers.engines.celery.worker import run_worker as run
    else:
        from penstock.workers.engines.dramatiq.worker import run_worker as run
    return run
