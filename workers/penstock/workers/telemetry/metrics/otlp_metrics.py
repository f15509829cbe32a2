"""Metrics of a Prometheus registry, pushed by OTLP, where the environment asks for it."""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from penstock.config.supervision import start_thread
from penstock.schemas import __version__
from penstock.workers.telemetry.traces.otel_setup import exporters, in_time, resource_of

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import Metric, MetricsData
    from opentelemetry.sdk.resources import Resource
    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric as Family
    from prometheus_client.samples import Sample

log = logging.getLogger("penstock.telemetry")

_INTERVAL_SECONDS = 60.0
_MEANS_SECONDS = ("_seconds", "_seconds_total")


class Push:
    """The push of a registry, from a thread of its own. `stop` ends it.

    Arguments:
        targets: the exporters; none: nothing is pushed.
        resource: this process.
        interval: seconds between two pushes.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        targets: Sequence[Any] = (),
        resource: Resource | None = None,
        interval: float = 0.0,
    ) -> None:
        self._registry, self._targets, self._resource, self._interval = registry, targets, resource, interval
        self._began, self._stopping = time.time_ns(), threading.Event()
        self._thread: threading.Thread | None = None
        if targets:
            self._thread = start_thread("metrics by OTLP", self._run, self._stopping, vital=False)

    def stop(self) -> None:
        """Push once more, within a few seconds, and end. Raises nothing."""
        if self._thread is not None and not self._stopping.is_set():
            self._stopping.set()
            in_time("metrics", self._finish, self._targets)

    def _run(self) -> None:
        while not self._stopping.wait(self._interval):
            self._push()

    def _push(self) -> None:
        assert self._resource is not None
        data = collect(self._registry, self._resource, self._began)
        for target in self._targets:
            target.export(data)

    def _finish(self) -> None:
        assert self._thread is not None
        self._thread.join()
        self._push()
        for target in self._targets:
            target.shutdown()


def start(registry: CollectorRegistry, role: str = "worker") -> Push:
    """Push what a registry has every minute, or as `OTEL_METRIC_EXPORT_INTERVAL` says, from a thread of its own.

    It does nothing unless `OTEL_METRICS_EXPORTER` or `OTEL_EXPORTER_OTLP_METRICS_ENDPOINT` is set. A collector that
    does not answer costs numbers, and nothing else.

    Arguments:
        role: of this process, as for its spans.
    """
    try:
        if targets := [make_exporter() for make_exporter in exporters("metrics")]:
            return Push(registry, targets, resource_of(role), _interval_seconds())
    except Exception:
        log.exception("no metrics are pushed")
    return Push(registry)


def collect(registry: CollectorRegistry, resource: Resource, began: int) -> MetricsData:
    """Registry → its metrics as they are now. Counters and histograms are cumulative.

    Arguments:
        began: since when they count, where they do not say so themselves, as `time.time_ns` says it.
    """
    from opentelemetry.sdk.metrics.export import MetricsData, ResourceMetrics, ScopeMetrics
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

    now = time.time_ns()
    metrics = [metric for family in registry.collect() for metric in _metrics_of(family, began, now)]
    scope = ScopeMetrics(InstrumentationScope("penstock", __version__), metrics, "")
    return MetricsData([ResourceMetrics(resource, [scope], "")])


def _metrics_of(family: Family, began: int, now: int) -> Iterator[Metric]:
    from opentelemetry.sdk.metrics.export import AggregationTemporality, Gauge, Metric, NumberDataPoint, Sum

    unit = family.unit or ("s" if family.name.endswith(_MEANS_SECONDS) else "")
    if family.type == "histogram":
        yield Metric(family.name, family.documentation, unit, _histogram(family, began, now))
        return
    created = _created(family)
    by_name: dict[str, list[NumberDataPoint]] = {}
    for sample in _values(family):
        start = created.get(_labels(sample), began)
        point = NumberDataPoint(dict(sample.labels), start, now, sample.value)
        by_name.setdefault(sample.name, []).append(point)
    for name, points in by_name.items():
        # Of a summary, its quantiles have its own name, and do not only grow.
        grows = family.type == "counter" or (family.type == "summary" and name != family.name)
        data = Sum(points, AggregationTemporality.CUMULATIVE, True) if grows else Gauge(points)
        yield Metric(name, family.documentation, unit, data)


def _histogram(family: Family, began: int, now: int) -> Any:
    from opentelemetry.sdk.metrics.export import AggregationTemporality, Histogram, HistogramDataPoint

    created = _created(family)
    buckets: dict[Any, list[tuple[float, float]]] = {}
    totals: dict[tuple[Any, str], float] = {}
    for sample in _values(family):
        labels = _labels(sample)
        if sample.name.endswith("_bucket"):
            buckets.setdefault(labels, []).append((float(sample.labels["le"]), sample.value))
        else:
            totals[labels, sample.name.removeprefix(family.name)] = sample.value
    points = []
    for labels, series in buckets.items():
        series.sort()
        upper = [count for _, count in series]
        counts = [int(count - before) for count, before in zip(upper, [0.0, *upper], strict=False)]
        point: Any = HistogramDataPoint(
            attributes=dict(labels),
            start_time_unix_nano=created.get(labels, began),
            time_unix_nano=now,
            count=int(upper[-1]),
            sum=totals.get((labels, "_sum"), 0.0),
            bucket_counts=counts,
            explicit_bounds=[bound for bound, _ in series if not math.isinf(bound)],
            min=None,  # type: ignore[arg-type]  # not known, and optional in the protocol
            max=None,  # type: ignore[arg-type]
        )
        points.append(point)
    return Histogram(points, AggregationTemporality.CUMULATIVE)


def _labels(sample: Sample) -> tuple[tuple[str, str], ...]:
    """Labels of a sample, without the bound of a bucket."""
    return tuple((name, value) for name, value in sample.labels.items() if name != "le")


def _created(family: Family) -> dict[Any, int]:
    """Labels → since when it counts, where the family says so."""
    samples: Iterable[Sample] = family.samples
    return {_labels(sample): int(sample.value * 1e9) for sample in samples if _is_creation(family, sample)}


def _values(family: Family) -> list[Sample]:
    return [sample for sample in family.samples if not _is_creation(family, sample)]


def _is_creation(family: Family, sample: Sample) -> bool:
    return sample.name == f"{family.name}_created"


def _interval_seconds() -> float:
    """Raises ValueError: the variable is not a number."""
    return float(os.environ.get("OTEL_METRIC_EXPORT_INTERVAL") or _INTERVAL_SECONDS * 1000) / 1000
