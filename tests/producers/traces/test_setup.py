"""The SDK is set up where the environment asks for it, and whatever becomes of it, jobs run."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter
from opentelemetry.util._once import Once
from producers.traces.collector import Span, collecting
from producers.traces.recorded import Recorded
from producers.traces.test_pairs import MODULE
from producers.traces.test_trees import HEADER, settings_in
from producers.traces.trace_jobs import Leaf
from support.polling import WAIT_SECONDS, until
from support.stack import TESTS, Stack, stopped_at_the_end

from penstock.ledger.members import api_keys
from penstock.workers.engines.inline import Inline
from penstock.workers.local.up.redis_server import RedisServer, free_port
from penstock.workers.telemetry.traces import otel_setup
from penstock.workers.telemetry.traces.otel_setup import exporters, resource_of, spans_exported

NOWHERE = "http://127.0.0.1:1"


@pytest.fixture(autouse=True)
def no_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process without a provider, and without one afterwards."""
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", None)
    monkeypatch.setattr(trace, "_TRACER_PROVIDER_SET_ONCE", Once())


def has_provider() -> bool:
    return isinstance(trace.get_tracer_provider(), TracerProvider)


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": NOWHERE, "OTEL_TRACES_EXPORTER": "none"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": NOWHERE, "OTEL_SDK_DISABLED": "true"},
        {"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": NOWHERE},
    ],
)
def test_nothing_is_set_up_unless_the_environment_asks(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with spans_exported("worker"):
        assert not has_provider()


@pytest.mark.parametrize("variable", ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"])
def test_an_endpoint_is_enough_and_the_last_spans_arrive(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with collecting() as collector:
        monkeypatch.setenv(variable, collector.url + ("/v1/traces" if "TRACES" in variable else ""))
        with spans_exported("worker"):
            trace.get_tracer("test").start_span("last").end()
        assert [(span.service, span.name) for span in collector.spans] == [("penstock-worker", "last")]


def test_the_console_is_an_exporter_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console, none")
    assert exporters("traces") == [ConsoleSpanExporter]
    with spans_exported("worker"):
        assert has_provider()


def test_the_name_of_the_service_is_that_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resource_of("gateway").attributes["service.name"] == "penstock-gateway"
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=shop-jobs,deployment.environment.name=test")
    attributes = resource_of("gateway").attributes
    assert (attributes["service.name"], attributes["deployment.environment.name"]) == ("shop-jobs", "test")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "shop")
    assert resource_of("gateway").attributes["service.name"] == "shop"


def test_the_application_keeps_its_own_provider(recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", NOWHERE)
    with spans_exported("worker"):
        assert trace.get_tracer_provider() is recorded.provider


def test_a_missing_sdk_is_a_warning_that_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", NOWHERE)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with caplog.at_level(logging.WARNING), spans_exported("worker"):
        assert not has_provider()
    [record] = caplog.records
    assert "install penstock[telemetry]" in record.getMessage()


def test_an_exporter_that_is_not_installed_is_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "zipkin")
    assert exporters("traces") == []
    assert "exporter 'zipkin'" in caplog.text


def test_a_wrong_variable_of_the_sdk_stops_no_process(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", NOWHERE)
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "-1")
    with spans_exported("worker"):
        pass
    assert "no spans are exported" in caplog.text


def test_jobs_run_and_a_process_ends_though_its_collector_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(otel_setup, "_LAST_SECONDS", 0.3)
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "8")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4")
    with collecting(answers=False) as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        with spans_exported("worker"), Inline(settings_in(tmp_path), queues=["traces"]) as inline:
            handles = inline.producer.enqueue_many([Leaf() for _ in range(50)])
            inline.drain(WAIT_SECONDS)
            assert {handle.status().state for handle in handles} == {"succeeded"}
    assert "the last spans are lost" in caplog.text


@pytest.fixture
def stack(request: pytest.FixtureRequest, redis_server: RedisServer, tmp_path: Path, prefix: str) -> Iterator[Stack]:
    stack = Stack("celery", redis_server.url, prefix, tmp_path)
    with stopped_at_the_end(stack, "redis", request.session):
        yield stack


def test_jobs_of_the_gateway_are_in_the_trace_of_the_header(stack: Stack) -> None:
    port = free_port()
    with collecting() as collector:
        environment = {
            "PYTHONPATH": str(TESTS),
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "OTEL_BSP_SCHEDULE_DELAY": "100",
        }
        gateway = stack.run(["gateway", "--port", str(port), "--import", MODULE], **environment)
        key, _ = api_keys.add(stack.database, "test")
        headers = {"Authorization": f"Bearer {key}", "traceparent": HEADER}

        def send() -> bool:
            try:
                answer = httpx.post(f"http://127.0.0.1:{port}/v1/jobs/trace.leaf", json={}, headers=headers)
            except httpx.TransportError as error:
                raise AssertionError(str(error)) from error
            return answer.status_code == 202

        until(send, unless=lambda: gateway.poll() is not None and stack.logs())
        sent = until(lambda: [span for span in collector.spans if span.name == "send traces"])
        until(lambda: HEADER[36:52] in above(sent[0], collector.spans))
    assert (sent[0].service, sent[0].trace) == ("penstock-gateway", HEADER[3:35])


def above(span: Span, spans: list[Span]) -> list[str]:
    """Ids of the spans above one. FastAPI makes one of its own, in later versions."""
    by_id, ids = {each.id: each for each in spans}, [span.parent]
    while ids[-1] in by_id:
        ids.append(by_id[ids[-1]].parent)
    return ids
