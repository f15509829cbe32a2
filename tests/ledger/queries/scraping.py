"""Metrics of collectors, as Prometheus would read them."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.registry import Collector


def scrape(*collectors: Collector) -> dict[str, float]:
    """Name with labels, as in the text of a scrape → value."""
    registry = CollectorRegistry()
    for collector in collectors:
        registry.register(collector)
    lines = [line for line in generate_latest(registry).decode().splitlines() if not line.startswith("#")]
    values = {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}
    assert len(values) == len(lines), "a sample is there twice"
    return values


def of(values: dict[str, float], metric: str) -> dict[str, float]:
    """The samples of a metric, by their labels."""
    return {name: value for name, value in values.items() if name.partition("{")[0] == metric}
