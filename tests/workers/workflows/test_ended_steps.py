"""A workflow hears at once of each end that the job of a step can come to, whatever ends it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from support.ledgers import claim_one, claimed, end, row_of, start_worker
from support.workflows import jobs as acme
from support.workflows.drive import advance_due, move, no_storage, rows_of, start, waiting

from penstock.ledger.retention.erasure import erase
from penstock.ledger.sql.database import Database
from penstock.ledger.transitions.abandoned import bury_dropped
from penstock.ledger.transitions.bury import bury_message
from penstock.ledger.transitions.cancel import request_cancel
from penstock.ledger.transitions.claim import Refusal
from penstock.ledger.transitions.due import envelope_of
from penstock.ledger.transitions.lost import put_back_running
from penstock.ledger.workflows.read import due_workflows
from penstock.schemas import Outcome, State
from penstock.schemas.wire.codec import decode

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
End = Callable[[Database, Any], None]


def run_under_a_dead_worker(ledger: Database, row: Any) -> None:
    start_worker(ledger, "dead", lease=-MINUTE)
    claimed(ledger, decode(envelope_of(row)), worker="dead")


def cancel_while_it_waits(ledger: Database, row: Any) -> None:
    assert request_cancel(ledger, row.id) == State.CANCELLED


def cancel_before_it_fails(ledger: Database, row: Any) -> None:
    claim = claimed(ledger, decode(envelope_of(row)))
    assert request_cancel(ledger, row.id) == State.RUNNING
    assert end(ledger, claim, Outcome.RETRY, error="no", delay=HOUR)


def cancel_before_it_is_redelivered(ledger: Database, row: Any) -> None:
    run_under_a_dead_worker(ledger, row)
    assert request_cancel(ledger, row.id) == State.RUNNING
    start_worker(ledger, "w2")
    answer = claim_one(ledger, decode(envelope_of(row)), worker="w2", again=True)
    assert isinstance(answer, Refusal)
    assert answer.reason == "cancelled"


def cancel_before_the_broker_loses_it(ledger: Database, row: Any) -> None:
    run_under_a_dead_worker(ledger, row)
    assert request_cancel(ledger, row.id) == State.RUNNING
    assert put_back_running(ledger, timedelta(), (row.queue, row.priority)) == 1


def succeed(ledger: Database, row: Any) -> None:
    assert end(ledger, claimed(ledger, decode(envelope_of(row))), Outcome.SUCCEEDED, result="{}")


def die(ledger: Database, row: Any) -> None:
    assert end(ledger, claimed(ledger, decode(envelope_of(row))), Outcome.DEAD, error="no")


def be_discarded(ledger: Database, row: Any) -> None:
    assert end(ledger, claimed(ledger, decode(envelope_of(row))), Outcome.DISCARDED)


def be_unreadable(ledger: Database, row: Any) -> None:
    envelope = envelope_of(row)
    assert bury_message(ledger, envelope, envelope.body, "invalid_payload", "no field of that name") == row.id


def be_delivered_too_often(ledger: Database, row: Any) -> None:
    run_under_a_dead_worker(ledger, row)
    envelope = envelope_of(row)
    assert bury_dropped(ledger, envelope, envelope.body, "delivered 20 times")


def be_erased(ledger: Database, row: Any) -> None:
    erase(ledger, {"id": row.id}, no_storage, actor="ada")


ENDS: dict[End, State] = {
    cancel_while_it_waits: State.CANCELLED,
    cancel_before_it_fails: State.CANCELLED,
    cancel_before_it_is_redelivered: State.CANCELLED,
    cancel_before_the_broker_loses_it: State.CANCELLED,
    succeed: State.SUCCEEDED,
    die: State.DEAD,
    be_discarded: State.DISCARDED,
    be_unreadable: State.DEAD,
    be_delivered_too_often: State.DEAD,
    be_erased: State.CANCELLED,
}


@pytest.mark.parametrize("finish", ENDS, ids=lambda finish: finish.__name__)
def test_a_workflow_hears_at_once_of_the_end_of_a_step(ledger: Database, finish: End) -> None:
    workflow_id = start(ledger, acme.Nightly(regions=["north"]))
    advance_due(ledger)
    [row] = waiting(ledger)
    assert due_workflows(ledger)[0] == [], "nothing has ended yet"
    finish(ledger, row)
    assert row_of(ledger, row.id).state == ENDS[finish]
    assert due_workflows(ledger)[0] == [workflow_id], "the step's end was not announced"
    move(ledger)
    assert "running" not in {step.state for step in rows_of(ledger, workflow_id).values()} or finish is succeed
