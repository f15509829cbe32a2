"""The observers that every worker has, whatever its engine."""

from __future__ import annotations

from penstock.config.settings import Settings
from penstock.workers.executor.runtime.observers import Observer


def telemetry_observers(settings: Settings, *, worker: str, engine: str) -> list[Observer]:
    """Observers that report a worker's jobs to its log, to Sentry, as spans and as metrics."""
    return []
