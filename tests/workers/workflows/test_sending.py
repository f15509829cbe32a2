"""The dispatcher sends the jobs that it has just written, and none is lost or early where that goes wrong."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from support.workflows import jobs as acme
from support.workflows.drive import advance_due, move, result, run, start, waiting

from penstock.ledger.sql.clock import from_now
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import jobs
from penstock.producers.senders.memory import MemoryBroker
from penstock.workers.dispatcher.due_jobs import send_due
from penstock.workers.dispatcher.workflows.send_jobs import StepJobs
from penstock.workers.workflows import advance as advancing
from penstock.workers.workflows.advance import Advanced


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker()


@pytest.fixture
def sending(ledger: Database, broker: MemoryBroker) -> StepJobs:
    ready = threading.Event()
    sending = StepJobs(ledger, broker, threading.Event(), ready)
    assert not sending.can_send
    ready.set()
    return sending


def advance(ledger: Database) -> Advanced:
    return advance_due(ledger, reserve=True)


def row(ledger: Database, kind: str) -> Any:
    return ledger.read(lambda connection: connection.execute(sa.select(jobs).where(jobs.c.kind == kind)).one())


def test_a_new_job_is_sent_and_marked_without_being_due(
    ledger: Database, broker: MemoryBroker, sending: StepJobs
) -> None:
    start(ledger, acme.Nightly(regions=["north"]))
    moved = advance(ledger)
    assert ([envelope.kind for envelope in moved.to_send], moved.has_due) == (["wf.sync"], False)
    assert send_due(ledger, broker) == 0
    sending.send(moved.to_send, moved.until)
    assert [envelope.id for envelope in broker.sent] == [row(ledger, "wf.sync").id]
    assert row(ledger, "wf.sync").state == "queued"
    assert sending.can_send
    assert not sending.due_wakeup.is_set()


def test_a_job_whose_dispatcher_died_before_sending_it_is_due_when_its_reservation_ends(ledger: Database) -> None:
    start(ledger, acme.Nightly(regions=["north"]))
    moved = advance(ledger)
    assert (row(ledger, "wf.sync").state, row(ledger, "wf.sync").due_at) == ("scheduled", moved.until)
    now = ledger.read(lambda connection: connection.execute(sa.select(from_now())).scalar_one())
    assert moved.until < now + timedelta(seconds=20)


def test_a_job_that_the_broker_refuses_is_due_at_once(
    ledger: Database, broker: MemoryBroker, sending: StepJobs
) -> None:
    start(ledger, acme.Nightly(regions=["north"]))
    moved = advance(ledger)
    broker.down = True
    sending.send(moved.to_send, moved.until)
    assert not sending.can_send  # for a while it is left to the service of due jobs
    assert sending.due_wakeup.is_set()
    broker.down = False
    assert send_due(ledger, broker) == 1
    assert [envelope.kind for envelope in broker.sent] == ["wf.sync"]


def test_a_unique_job_is_left_to_the_service_of_due_jobs(ledger: Database, broker: MemoryBroker) -> None:
    start(ledger, acme.Only(what="x"))
    moved = advance(ledger)
    assert (moved.to_send, moved.has_due) == ([], True)
    assert send_due(ledger, broker) == 1


def test_jobs_beyond_the_batch_that_is_sent_at_once_are_due(
    ledger: Database, broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(advancing, "_MOST_RESERVED", 2)
    start(ledger, acme.Nightly(regions=["north", "south", "west"]))
    move(ledger)
    run(ledger, waiting(ledger), "w1", result)
    moved = advance(ledger)
    assert (moved.to_send, moved.has_due) == ([], True)
    assert send_due(ledger, broker) == 3
    assert {envelope.kind for envelope in broker.sent} == {"wf.report"}
