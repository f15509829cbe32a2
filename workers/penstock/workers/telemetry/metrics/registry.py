"""The registry of a process's metrics, if anyone asks for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.config.settings import Settings
from penstock.schemas import __version__

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry


def open_registry(settings: Settings, *, role: str, engine: str = "") -> CollectorRegistry | None:
    """A registry with the metrics that every process has. None: no one asks for metrics, so none are counted.

    Arguments:
        role, engine: of this process; see `add_process_metrics`.
    """
    if settings.http_port is None:
        return None
    from prometheus_client import CollectorRegistry

    from penstock.config.process.metrics import add_process_metrics

    registry = CollectorRegistry()
    add_process_metrics(registry, version=__version__, role=role, engine=engine)
    return registry
