"""From a request to its job, the job's children and their retries: one tree, recorded by the real SDK."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import Tracer
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased, TraceIdRatioBased
from opentelemetry.trace import SpanKind, StatusCode
from producers.traces import trace_jobs
from producers.traces.recorded import Recorded, assert_one_tree, id_of, parent_of
from producers.traces.trace_jobs import MARKER, Leaf, Login, OuterChild, OuterCoroutine, OuterThread
from support.polling import WAIT_SECONDS, until

from penstock.config.sections.telemetry import TelemetrySettings
from penstock.config.settings import Settings
from penstock.producers import AsyncProducer
from penstock.producers.traces import current_traceparent, traced
from penstock.schemas import Job
from penstock.workers.engines.inline import Inline

HEADER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
OUTER = [OuterCoroutine, OuterThread, OuterChild]


def settings_in(folder: Path, **more: object) -> Settings:
    return Settings(
        database_url=f"sqlite:///{folder}/ledger.db",
        storage_url=f"file:{folder}/storage",
        unknown_kind_grace=timedelta(),
        **more,
    )


@pytest.fixture
def inline(tmp_path: Path) -> Iterator[Inline]:
    with Inline(settings_in(tmp_path), queues=["traces"]) as engine:
        yield engine


@pytest.mark.parametrize("kind", OUTER)
def test_request_job_child_and_retry_are_one_tree(recorded: Recorded, inline: Inline, kind: type[Job]) -> None:
    with recorded.tracer.start_as_current_span("GET /orders"):
        handle = inline.producer.enqueue(kind())
    inline.drain(WAIT_SECONDS)
    root = assert_one_tree(recorded.spans)
    assert root.name == "GET /orders"
    [send], [outer] = (
        recorded.sent(kind=kind.kind().name),
        recorded.named("process traces", kind=kind.kind().name),
    )
    first, second = recorded.named("process traces", kind="trace.leaf")
    assert parent_of(send) == id_of(root)
    assert parent_of(outer) == id_of(send)
    assert (send.kind, outer.kind) == (SpanKind.PRODUCER, SpanKind.CONSUMER)
    assert [first.attributes["penstock.attempt"], second.attributes["penstock.attempt"]] == [1, 2]
    assert [first.attributes["penstock.outcome"], second.attributes["penstock.outcome"]] == ["retry", "succeeded"]
    assert parent_of(first) == parent_of(second) == id_of(outer)
    # The handler found the span of its attempt as the current one, wherever it ran.
    result = handle.result()
    assert result["span"] == id_of(outer)
    assert result["traceparent"][3:52] == f"{result['trace']}-{id_of(outer)}"


def test_a_span_says_what_the_conventions_ask_for(recorded: Recorded, inline: Inline) -> None:
    handle = inline.producer.enqueue(Leaf(failures=1), key="order 5", tenant="acme")
    inline.drain(WAIT_SECONDS)
    [send] = recorded.sent()
    assert dict(send.attributes) == {
        "messaging.system": "penstock",
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.destination.name": "traces",
        "messaging.message.id": handle.id,
        "penstock.kind": "trace.leaf",
    }
    failed, succeeded = recorded.named("process traces")
    assert failed.attributes["error.type"] == "ValueError"
    assert (failed.status.status_code, failed.status.description) == (StatusCode.ERROR, "ValueError: attempt 1")
    [event] = failed.events
    assert event.name == "exception"
    assert "raise ValueError" in event.attributes["exception.stacktrace"]
    assert (succeeded.status.status_code, succeeded.events) == (StatusCode.UNSET, ())
    assert [id_of_link(link) for link in succeeded.links] == [id_of(send)]
    assert dict(succeeded.attributes)["messaging.operation.type"] == "process"
    for attempt in (failed, succeeded):
        parts = [span for span in recorded.spans if parent_of(span) == id_of(attempt)]
        assert sorted(span.name for span in parts) == ["claim", "record", "run"]
        assert all(attempt.start_time <= part.start_time <= part.end_time <= attempt.end_time for part in parts)
    assert "order 5" not in recorded.text()
    assert "acme" not in recorded.text()


def id_of_link(link: trace.Link) -> str:
    return f"{link.context.span_id:016x}"


def test_a_job_without_a_request_begins_a_trace(recorded: Recorded, inline: Inline) -> None:
    inline.producer.enqueue(Leaf())
    inline.drain(WAIT_SECONDS)
    assert assert_one_tree(recorded.spans).name == "send traces"


def test_many_jobs_have_one_producer_span(recorded: Recorded, inline: Inline) -> None:
    inline.producer.enqueue_many([Leaf() for _ in range(3)])
    inline.drain(WAIT_SECONDS)
    root = assert_one_tree(recorded.spans)
    assert root.attributes["messaging.batch.message_count"] == 3
    assert {parent_of(span) for span in recorded.named("process traces")} == {id_of(root)}


def test_the_header_of_a_request_is_the_parent_without_instrumentation(recorded: Recorded, inline: Inline) -> None:
    with traced(HEADER):
        inline.producer.enqueue(Leaf())
    inline.drain(WAIT_SECONDS)
    [send] = recorded.sent()
    assert parent_of(send) == "b7ad6b7169203331"
    assert {f"{span.get_span_context().trace_id:032x}" for span in recorded.spans} == {HEADER[3:35]}


def test_an_option_overrides_the_current_span(recorded: Recorded, inline: Inline) -> None:
    with recorded.tracer.start_as_current_span("GET /"):
        inline.producer.enqueue(Leaf(), traceparent=HEADER)
    inline.drain(WAIT_SECONDS)
    assert parent_of(recorded.sent()[0]) == "b7ad6b7169203331"


def test_a_delayed_job_has_a_span_of_the_dispatcher_in_its_trace(recorded: Recorded, inline: Inline) -> None:
    inline.producer.enqueue(Leaf(), delay=0.05)
    inline.drain(WAIT_SECONDS)
    root = assert_one_tree(recorded.spans)
    sent, attempt = recorded.named("send traces", source="due"), recorded.named("process traces")
    assert [parent_of(span) for span in (*sent, *attempt)] == [id_of(root), id_of(root)]
    assert sent[0].kind == SpanKind.CLIENT


def test_coroutines_of_the_asynchronous_producer_keep_their_traces_apart(recorded: Recorded, inline: Inline) -> None:
    producer = AsyncProducer("redis://inline", sender=_Relay(inline))

    async def request(name: str) -> None:
        with recorded.tracer.start_as_current_span(name):
            await producer.enqueue(Leaf())
            await producer.enqueue_many([Leaf(), Leaf()])
        assert current_traceparent() is None

    async def both() -> None:
        await asyncio.gather(request("one"), request("two"))

    asyncio.run(both())
    inline.drain(WAIT_SECONDS)
    for name in ("one", "two"):
        [root] = recorded.named(name)
        trace_id = root.get_span_context().trace_id
        of_request = [span for span in recorded.spans if span.get_span_context().trace_id == trace_id]
        assert assert_one_tree(of_request) is root
        assert [span.name for span in of_request].count("process traces") == 3


class _Relay:
    """An asynchronous sender to the broker in memory."""

    def __init__(self, inline: Inline) -> None:
        self._broker = inline.broker

    async def send(self, envelopes: object) -> None:
        await asyncio.sleep(0)
        self._broker.send(envelopes)  # type: ignore[arg-type]


def test_linked_mode_begins_a_trace_for_each_job(recorded: Recorded, tmp_path: Path) -> None:
    settings = settings_in(tmp_path, telemetry=TelemetrySettings(process_spans="linked"))
    with Inline(settings, queues=["traces"]) as inline:
        inline.producer.enqueue(OuterCoroutine(failures=0))
        inline.drain(WAIT_SECONDS)
    [send] = recorded.sent()
    [outer], [leaf] = (recorded.named("process traces", kind=name) for name in ("trace.coroutine", "trace.leaf"))
    assert [outer.parent, leaf.parent] == [None, None]
    assert [id_of_link(link) for link in outer.links] == [id_of(send)]
    assert [id_of_link(link) for link in leaf.links] == [id_of(outer)]
    assert len({span.get_span_context().trace_id for span in (send, outer, leaf)}) == 3


@pytest.mark.parametrize("kind", OUTER)
@pytest.mark.parametrize("sampler", [ParentBased(ALWAYS_ON)])
def test_what_a_request_does_not_sample_is_not_sampled_later(
    recorded: Recorded, inline: Inline, kind: type[Job]
) -> None:
    with traced(f"{HEADER[:-2]}00"):
        handle = inline.producer.enqueue(kind())
    inline.drain(WAIT_SECONDS)
    assert recorded.spans == ()
    result = handle.result()
    assert (result["trace"], result["traceparent"][-2:]) == (HEADER[3:35], "00")


@pytest.mark.parametrize("sampler", [ALWAYS_OFF, ParentBased(ALWAYS_OFF), ParentBased(ALWAYS_ON)])
@pytest.mark.parametrize("kind", [OuterCoroutine, OuterThread])
def test_what_is_not_sampled_costs_no_span(
    recorded: Recorded, inline: Inline, kind: type[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A span that the sampler refuses takes the SDK as long as a short job."""
    calls: list[object] = []
    monkeypatch.setattr(Tracer, "start_span", lambda *arguments, **_: calls.append(arguments))
    with traced(f"{HEADER[:-2]}00"):
        inline.producer.enqueue_many([kind(), kind()])
        inline.producer.enqueue(kind(), delay=0.01)
    inline.drain(WAIT_SECONDS)
    assert calls == []


@pytest.mark.parametrize("sampler", [ALWAYS_OFF, ParentBased(ALWAYS_OFF), ParentBased(TraceIdRatioBased(0.0))])
def test_a_trace_that_is_not_sampled_is_passed_on_as_such(recorded: Recorded, inline: Inline) -> None:
    handle = inline.producer.enqueue(OuterCoroutine(failures=0))
    inline.drain(WAIT_SECONDS)
    assert recorded.spans == ()
    result = handle.result()
    assert not int(result["traceparent"][-2:], 16) & 1
    assert result["traceparent"][3:35] == result["trace"]


def test_without_a_provider_a_handler_is_in_the_trace_of_its_request(inline: Inline) -> None:
    with traced(HEADER):
        handles = [inline.producer.enqueue(kind(failures=0)) for kind in OUTER]
    inline.drain(WAIT_SECONDS)
    assert [handle.result()["traceparent"] for handle in handles] == [HEADER] * 3
    assert [handle.result()["span"] for handle in handles] == ["b7ad6b7169203331"] * 3


def test_values_of_sensitive_fields_are_in_no_span(recorded: Recorded, inline: Inline) -> None:
    inline.producer.enqueue(Login(password=MARKER))
    inline.drain(WAIT_SECONDS)
    [attempt] = recorded.named("process traces")
    assert attempt.attributes["error.type"] == "PermissionError"
    assert "wrong password" in attempt.events[0].attributes["exception.message"]
    assert MARKER not in recorded.text()


def test_a_job_that_is_refused_by_the_broker_ends_its_producer_span_with_an_error(recorded: Recorded) -> None:
    from penstock.config.errors import BrokerUnavailable
    from penstock.producers import Producer

    producer = Producer("redis://127.0.0.1:1", timeout=0.2)
    with pytest.raises(BrokerUnavailable):
        producer.enqueue(Leaf())
    producer.close()
    [send] = recorded.spans
    assert (send.attributes["error.type"], send.status.status_code) == ("BrokerUnavailable", StatusCode.ERROR)
    assert not trace.get_current_span().get_span_context().is_valid


def test_a_context_of_one_job_does_not_reach_the_next(recorded: Recorded, inline: Inline) -> None:
    with traced(HEADER):
        inline.producer.enqueue(Leaf())
    inline.producer.enqueue(Leaf())
    inline.drain(WAIT_SECONDS)
    until(lambda: len(recorded.named("process traces")) == 2)
    assert len({span.get_span_context().trace_id for span in recorded.named("process traces")}) == 2
    assert trace_jobs.current_traceparent() is None
