"""Metrics by OTLP, taken apart by a collector as they arrive."""

from __future__ import annotations

import logging
import threading
from typing import Any

import pytest
from producers.traces.collector import Collector, collecting, values
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, Summary
from support.polling import until

from penstock.config import supervision
from penstock.workers.telemetry.metrics.otlp_metrics import start
from penstock.workers.telemetry.traces import otel_setup

CUMULATIVE = 2


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "50")


@pytest.fixture
def registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    jobs = Counter("shop_jobs", "jobs that ended", ["kind"], registry=registry)
    jobs.labels(kind="a").inc(3)
    jobs.labels(kind="b").inc()
    Gauge("shop_slots", "slots", ["state"], registry=registry).labels(state="used").set(7)
    wait = Histogram("shop_wait_seconds", "waits", ["queue"], buckets=(0.1, 1, 10), registry=registry)
    for seconds in (0.05, 0.5, 0.6, 5, 50):
        wait.labels(queue="q").observe(seconds)
    Summary("shop_size", "sizes", registry=registry).observe(12)
    Info("shop_build", "version", registry=registry).info({"version": "1"})
    return registry


def latest(collector: Collector) -> dict[str, Any]:
    """Name of a metric → the metric, as it came last."""
    [resource] = collector.metrics[-1].resource_metrics
    [scope] = resource.scope_metrics
    return {metric.name: metric for metric in scope.metrics}


def by_labels(points: Any) -> dict[tuple[tuple[str, str], ...], float]:
    return {tuple(sorted(values(point.attributes).items())): point.as_double for point in points}


def test_counters_gauges_and_histograms_arrive_as_what_they_are(
    registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", f"{collector.url}/v1/metrics")
        push = start(registry, "dispatcher")
        until(lambda: len(collector.metrics) >= 2)
        push.stop()
        metrics = latest(collector)
    resource = values(collector.metrics[-1].resource_metrics[0].resource.attributes)
    assert resource["service.name"] == "penstock-dispatcher"
    jobs = metrics["shop_jobs_total"]
    assert (jobs.sum.is_monotonic, jobs.sum.aggregation_temporality) == (True, CUMULATIVE)
    assert by_labels(jobs.sum.data_points) == {(("kind", "a"),): 3, (("kind", "b"),): 1}
    assert all(0 < point.start_time_unix_nano < point.time_unix_nano for point in jobs.sum.data_points)
    assert by_labels(metrics["shop_slots"].gauge.data_points) == {(("state", "used"),): 7}
    wait = metrics["shop_wait_seconds"]
    [point] = wait.histogram.data_points
    assert (wait.unit, wait.histogram.aggregation_temporality) == ("s", CUMULATIVE)
    assert list(point.explicit_bounds) == [0.1, 1, 10]
    assert (list(point.bucket_counts), point.count, point.sum) == ([1, 2, 1, 1], 5, pytest.approx(56.15))
    assert values(point.attributes) == {"queue": "q"}
    assert not point.HasField("min")
    assert by_labels(metrics["shop_size_sum"].sum.data_points) == {(): 12}
    assert by_labels(metrics["shop_build_info"].gauge.data_points) == {(("version", "1"),): 1}


def test_the_last_numbers_are_pushed_at_the_end(registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "otlp")
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "3600000")
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        start(registry).stop()
        assert len(collector.metrics) == 1


def test_nothing_is_pushed_unless_the_environment_asks(
    registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)  # that is for spans
        before = threading.active_count()
        push = start(registry)
        assert threading.active_count() == before
        push.stop()
        assert collector.metrics == []


def test_a_collector_that_hangs_holds_up_only_the_end_and_not_for_long(
    registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(otel_setup, "_LAST_SECONDS", 0.3)
    with collecting(answers=False) as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", f"{collector.url}/v1/metrics")
        push = start(registry)
        with caplog.at_level(logging.WARNING, "penstock.telemetry"):
            push.stop()
    assert "the last metrics are lost" in caplog.text


def test_a_registry_that_fails_is_asked_again(monkeypatch: pytest.MonkeyPatch, registry: CollectorRegistry) -> None:
    class Broken:
        calls = 0

        def collect(self) -> Any:
            Broken.calls += 1
            if Broken.calls <= 2:
                raise ValueError("no numbers")
            return []

    registry.register(Broken())  # type: ignore[arg-type]
    failures = supervision.failures["metrics by OTLP"]
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", f"{collector.url}/v1/metrics")
        push = start(registry)
        until(lambda: collector.metrics)
        push.stop()
    assert supervision.failures["metrics by OTLP"] == failures + 2
