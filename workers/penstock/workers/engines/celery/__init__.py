"""The Celery engine: a Celery application and worker whose jobs run in the executor.

Celery's command line clients, remote control, signals and monitors find a worker of theirs. Its task consumer consumes
nothing: jobs come in through the same intake as on every engine.
"""

from __future__ import annotations

from collections.abc import Sequence

from penstock.config.settings import Settings


def run(settings: Settings, *, queues: Sequence[str], concurrency: int | None, name: str | None, log_level: str) -> int:
    """Run a worker until SIGTERM, SIGINT or a remote shutdown, then drain it. Returns the exit code.

    Raises:
        KindError, LedgerUnavailable: the worker cannot boot.
    """
    from penstock.workers.engines.celery.worker import run_worker

    return run_worker(settings, queues=queues, concurrency=concurrency, name=name, log_level=log_level)
