"""Traces through outboxes, schedules, workflows, stock clients, and the children of suspects."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind
from producers.traces.recorded import Recorded, assert_one_tree, id_of, parent_of
from producers.traces.test_trees import settings_in
from producers.traces.trace_jobs import Suspect, SuspectThread, TwoSteps
from sqlalchemy.orm import Session
from support.ledgers import Note, row_of, set_up, stock_envelope
from support.polling import WAIT_SECONDS, until
from workers.dispatcher.outbox.outbox_relays import OUT, left
from workers.dispatcher.schedule_rules import HOURLY, fired, overdue, rules
from workers.executor.bench import Bench
from workers.executor.suspects.cutting import cut_off

from penstock.config.settings import ScheduleSettings, Settings
from penstock.ledger.schedules.declare import declare_schedules
from penstock.ledger.sql.database import Database
from penstock.ledger.transitions.due import envelope_of, keep, waiting
from penstock.producers.senders.memory import MemoryBroker
from penstock.producers.traces.sending import relayed
from penstock.schemas import Job
from penstock.schemas.wire.codec import decode
from penstock.workers.dispatcher.outbox.relay import OutboxRelay
from penstock.workers.dispatcher.schedules.service import Schedules
from penstock.workers.dispatcher.stock_clients import StockClients
from penstock.workers.engines.inline import Inline

HEADER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def ledger(sqlite_url: str) -> Iterator[Database]:
    database = Database(set_up(sqlite_url))
    yield database
    database.close()


def test_an_outbox_makes_the_span_of_the_job_and_its_relay_one_in_its_trace(
    recorded: Recorded, ledger: Database
) -> None:
    with recorded.tracer.start_as_current_span("POST /orders"), Session(ledger.engine) as session:
        OUT.enqueue(session, Note(text="a"))
        OUT.enqueue_many(session, [Note(text="b"), Note(text="c")])
        session.commit()
    broker = MemoryBroker()
    relay = OutboxRelay(ledger, ledger, broker)
    until(lambda: relay.run_once() and left(ledger) == 0)
    root = assert_one_tree(recorded.spans)
    created = recorded.named("create notes")
    assert [(span.kind, parent_of(span)) for span in created] == [(SpanKind.PRODUCER, id_of(root))] * 2
    sent = recorded.named("send notes", source="outbox")
    assert [parent_of(span) for span in sent] == [id_of(created[0]), id_of(created[1]), id_of(created[1])]
    carried = [envelope.headers["penstock"]["traceparent"][36:52] for envelope in broker.sent]
    assert carried == [parent_of(span) for span in sent]


def test_each_firing_of_a_schedule_begins_a_trace(recorded: Recorded, ledger: Database) -> None:
    service = Schedules(ledger, Settings(schedules={"hourly": ScheduleSettings(**HOURLY)}))
    service.run_once()
    overdue(ledger, "hourly")
    until(lambda: service.run_once() is not None and fired(ledger))
    [span] = recorded.spans
    [firing] = fired(ledger)
    assert (span.name, span.kind, span.parent) == ("create notes", SpanKind.PRODUCER, None)
    assert dict(span.attributes)["penstock.schedule"] == "hourly"
    assert dict(span.attributes)["messaging.message.id"] == firing.job_id
    assert row_of(ledger, firing.job_id).traceparent[36:52] == id_of(span)


@pytest.mark.parametrize("sampler", [ALWAYS_OFF])
def test_a_firing_that_is_not_sampled_says_so_to_its_worker(recorded: Recorded, ledger: Database) -> None:
    declare_schedules(ledger, rules(hourly=HOURLY))
    service = Schedules(ledger, Settings(schedules={"hourly": ScheduleSettings(**HOURLY)}))
    overdue(ledger, "hourly")
    until(lambda: service.run_once() is not None and fired(ledger))
    assert row_of(ledger, fired(ledger)[0].job_id).traceparent.endswith("-00")
    assert recorded.spans == ()


def test_a_workflow_with_its_steps_and_their_retries_is_one_tree(recorded: Recorded, tmp_path: Path) -> None:
    with Inline(settings_in(tmp_path), queues=["traces"]) as inline:
        with recorded.tracer.start_as_current_span("POST /months"):
            handle = inline.producer.enqueue(TwoSteps())
        assert handle.wait(WAIT_SECONDS).state == "succeeded"
        inline.drain(WAIT_SECONDS)
    assert assert_one_tree(recorded.spans).name == "POST /months"
    leaves = recorded.named("process traces", kind="trace.leaf")
    assert [span.attributes["penstock.outcome"] for span in leaves] == ["retry", "succeeded", "succeeded"]
    assert recorded.named("process traces", kind="trace.workflow")


@pytest.mark.parametrize("kind", [Suspect, SuspectThread])
def test_a_suspect_has_the_span_of_its_attempt_in_its_child(recorded: Recorded, bench: Bench, kind: type[Job]) -> None:
    handle = cut_off(bench, kind())
    bench.worker(engine="test")
    status = handle.wait(WAIT_SECONDS)
    assert status.state == "succeeded", status
    until(lambda: recorded.named("process ex", kind=kind.kind().name))
    [attempt] = recorded.named("process ex", kind=kind.kind().name)
    assert status.result["pid"] != os.getpid()
    assert status.result["span"] == status.result["traceparent"][36:52] == id_of(attempt)
    assert attempt.attributes["penstock.crashes"] == 1
    assert assert_one_tree(recorded.spans).name == "send ex"


def test_the_trace_of_a_stock_celery_client_is_taken_over(
    recorded: Recorded, ledger: Database, redis_url: str, prefix: str
) -> None:
    """OpenTelemetry's instrumentation of Celery puts it into the headers."""
    stock = StockClients(Settings(broker_url=redis_url, prefix=prefix, stock_queues=()), ledger)
    stock._refresh_queues()
    try:
        routed = stock.route(stock_envelope("ledger.note", {"text": "x"}, queue="celery", traceparent=HEADER), b"raw")
    finally:
        stock.close()
    assert routed is not None
    assert decode(routed).traceparent == HEADER
    [span] = recorded.named("send notes", source="stock")
    assert parent_of(span) == HEADER[36:52]
    keep(ledger, [waiting(routed)])
    row = row_of(ledger, routed.id)
    assert row.traceparent == HEADER
    assert decode(envelope_of(row)).traceparent == HEADER


@pytest.mark.parametrize("header", ["nonsense", 7, "00-00000000000000000000000000000000-b7ad6b7169203331-01", "x" * 99])
def test_a_stock_header_that_is_no_traceparent_harms_no_job(header: object) -> None:
    envelope = stock_envelope("ledger.note", {"text": "x"}, queue="celery", traceparent=header)
    assert decode(envelope).traceparent is None
    assert waiting(envelope)["traceparent"] is None


def test_a_traceparent_of_other_software_may_be_anything(recorded: Recorded, bench: Bench) -> None:
    from workers.executor.bench import Add

    from penstock.schemas.wire.codec import encode

    envelopes = [encode(Add(a=1, b=2), traceparent=text) for text in ("", "-", "nonsense", "x" * 64)]
    bench.broker.send(envelopes)
    bench.worker()
    until(lambda: len(recorded.named("process ex")) == len(envelopes))
    assert all(span.parent is None and not span.links for span in recorded.named("process ex"))


def test_a_tracer_that_fails_harms_no_sending(recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a bug of a library")

    from penstock.producers import Producer
    from penstock.producers.traces.otel import find_tracing

    monkeypatch.setattr(find_tracing(), "tracer", type("Broken", (), {"start_span": broken})())
    broker = MemoryBroker()
    producer = Producer("redis://unused", sender=broker)
    producer.enqueue(Note(text="x"), traceparent=HEADER)
    relayed(broker.sent, 1, "due")
    assert [envelope.headers["penstock"]["traceparent"] for envelope in broker.sent] == [HEADER]
