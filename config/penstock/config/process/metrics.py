"""Metrics that every process has: what it is, and what it has outlived."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from penstock.config.supervision import failures, faults, without_url


def add_process_metrics(registry: CollectorRegistry, *, version: str, role: str, engine: str = "") -> None:
    """Register `penstock_info`, `penstock_loop_restarts_total` and `penstock_faults_total`.

    Arguments:
        version: of Penstock.
        role: `worker`, `dispatcher` or `gateway`.
        engine: of a worker.
    """
    registry.register(ProcessMetrics(version=version, role=role, engine=engine))


class ProcessMetrics(Collector):
    """The identity of this process, and the failures that it has outlived. See `add_process_metrics`."""

    def __init__(self, *, version: str, role: str, engine: str) -> None:
        self._labels = {"version": version, "role": role, "engine": engine}

    def collect(self) -> Iterable[Metric]:
        info = GaugeMetricFamily("penstock_info", "What this process is.", labels=tuple(self._labels))
        info.add_metric(list(self._labels.values()), 1)
        loops: Counter[str] = Counter()
        for name, count in failures.copy().items():
            loops[without_url(name)] += count
        restarts = CounterMetricFamily(
            "penstock_loop_restarts", "Loops that failed and were started again.", labels=("loop",)
        )
        for name, count in loops.items():
            restarts.add_metric([name], count)
        outlived = CounterMetricFamily("penstock_faults", "Faults that the process outlives.", labels=("fault",))
        for name, count in faults.copy().items():
            outlived.add_metric([name], count)
        return (info, restarts, outlived)
