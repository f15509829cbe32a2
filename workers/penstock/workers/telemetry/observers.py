"""The observers that every worker has, whatever its engine."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from penstock.config.settings import Settings
from penstock.workers.executor.runtime.observers import Observer
from penstock.workers.telemetry.failures.job_log import JobLog
from penstock.workers.telemetry.failures.reports import FailureReports
from penstock.workers.telemetry.traces.spans import ProcessSpans

log = logging.getLogger("penstock.worker")


def telemetry_observers(settings: Settings, *, worker: str, engine: str) -> list[Observer]:
    """Observers that report a worker's jobs to its log, to Sentry, as spans and as metrics."""
    observers: list[Observer] = [
        ProcessSpans(settings.telemetry.process_spans),
        FailureReports(settings, worker=worker, engine=engine),
    ]
    if settings.log_jobs:
        observers.append(JobLog(worker))
    return observers


def close_observers(observers: Iterable[Observer]) -> None:
    """Close those that have something to close, once the worker's last job has ended."""
    for observer in observers:
        try:
            if (close := getattr(observer, "close", None)) is not None:
                close()
        except Exception:
            log.exception("%s was not closed in order", type(observer).__name__)
