"""Each engine on each broker, in processes as an operator starts them: their spans, exported by OTLP, are one tree."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from producers.traces.collector import Collector, Span, collecting
from producers.traces.recorded import Recorded, id_of, parent_of
from producers.traces.trace_jobs import (
    Leaf,
    OuterChild,
    OuterCoroutine,
    OuterThread,
    SendsChild,
    SendsCoroutine,
    SendsThread,
)
from support.polling import WAIT_SECONDS, until
from support.servers.shared import broker_url
from support.stack import PAIRS, TESTS, Stack, stopped_at_the_end

from penstock.workers.local.up.redis_server import RedisServer

MODULE = "producers.traces.trace_jobs"
ENQUEUE = [OuterCoroutine, OuterThread, OuterChild]
SEND = [SendsCoroutine, SendsThread, SendsChild]


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


@pytest.fixture(params=PAIRS, ids="-".join)
def stack(
    request: pytest.FixtureRequest, redis_server: RedisServer, tmp_path: Path, collector: Collector
) -> Iterator[Stack]:
    engine, broker = request.param
    stack = Stack(engine, broker_url(broker, redis_server), f"t{uuid.uuid4().hex[:10]}", tmp_path)
    environment = {
        "PYTHONPATH": str(TESTS),
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "OTEL_BSP_SCHEDULE_DELAY": "100",
    }
    stack.run(["dispatcher", "--import", MODULE], **environment)
    stack.run(["worker", "--engine", engine, "--queues", "traces", "--import", MODULE], **environment)
    with stopped_at_the_end(stack, broker, request.session):
        yield stack


def test_request_job_child_and_retry_are_one_tree(stack: Stack, recorded: Recorded, collector: Collector) -> None:
    with recorded.tracer.start_as_current_span("GET /orders"):
        handles = [stack.producer.enqueue(kind()) for kind in (*ENQUEUE, *SEND)]
        delayed = stack.producer.enqueue(Leaf(), delay=0.2)
    for handle in (*handles, delayed):
        assert handle.wait(WAIT_SECONDS).state == "succeeded"

    def attempts() -> list[Span]:
        return [span for span in collector.spans if span.name == "process traces"]

    # Six jobs, their six leaves with two attempts each, and the delayed leaf.
    until(lambda: len(attempts()) == 6 + 12 + 1)
    until(lambda: len([span for span in collector.spans if span.name == "record"]) == 6 + 12 + 1)
    spans = {span.id: span for span in collector.spans}
    [root] = recorded.named("GET /orders")
    here = {id_of(span): parent_of(span) for span in recorded.spans}
    trace_id = f"{root.get_span_context().trace_id:032x}"
    assert {span.trace for span in spans.values()} == {trace_id}
    orphans = [span for span in spans.values() if span.parent not in spans and span.parent not in here]
    assert not orphans
    assert [id for id, parent in here.items() if parent is None] == [id_of(root)]
    assert {span.service for span in attempts()} == {"penstock-worker"}

    leaves = [span for span in attempts() if span.attributes["penstock.kind"] == "trace.leaf"]
    above = [ancestor_kind(span, spans) for span in leaves]
    assert sorted(kind for kind in above if kind is not None) == sorted(
        2 * [kind.kind().name for kind in (*ENQUEUE, *SEND)]
    )
    by_dispatcher = [span for span in spans.values() if span.service == "penstock-dispatcher"]
    assert {span.attributes["penstock.source"] for span in by_dispatcher} == {"due"}
    # The six jobs of `ctx.enqueue` and of retries, and the delayed one.
    assert len(by_dispatcher) >= 7
    assert os.fspath(stack.folder) not in str(collector.spans)


def ancestor_kind(span: Span, spans: dict[str, Span]) -> str | None:
    """Kind of the job in whose handler a job was enqueued; None: it was in the request's."""
    while (above := spans.get(span.parent)) is not None:
        if above.name == "process traces":
            return str(above.attributes["penstock.kind"])
        span = above
    return None
