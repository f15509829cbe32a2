"""Why a job is held back: no worker that has met it knows it yet."""

from __future__ import annotations

from datetime import timedelta

import pytest
from producers.explain.members import HOUR, dispatcher, worker
from support.ledgers import Note, change

from penstock.ledger.sql.database import Database
from penstock.ledger.transitions import due
from penstock.producers.explain import explain
from penstock.schemas import State
from penstock.schemas.wire.codec import encode


def held(ledger: Database, reason: str = "no_handler") -> str:
    envelope = encode(Note())
    request = due.HoldRequest(due.waiting(envelope), 0, False, reason, "nothing imported handles it")
    assert due.hold_back(ledger, [request], worker="old", grace=HOUR) == ["held"]
    return envelope.id


def test_a_held_job_names_the_worker_that_does_not_know_it_the_end_of_its_grace_and_those_that_know_it(
    ledger: Database,
) -> None:
    dispatcher(ledger)
    worker(ledger, "old", kinds=())
    worker(ledger, "new")
    explanation = explain(ledger, held(ledger))
    assert explanation.state == State.SCHEDULED
    assert "worker old does not (no_handler: nothing imported handles it)" in explanation.because
    assert "(in 59 min), and then becomes a dead letter" in explanation.because
    assert "1 live worker of its queue handle ledger.note: new" in explanation.because
    assert explanation.facts["with_handler"] == ["new"]
    assert explanation.facts["without_handler"] == ["old"]
    assert explanation.facts["held_until"] - explanation.facts["held_since"] == HOUR
    assert "--import" in str(explanation.advice)


def test_a_held_job_that_no_live_worker_knows_says_so(ledger: Database) -> None:
    dispatcher(ledger)
    worker(ledger, "old", kinds=())
    explanation = explain(ledger, held(ledger))
    assert "no live worker of queue 'notes' has a handler for ledger.note" in explanation.because
    assert "with_handler" not in explanation.facts


@pytest.mark.parametrize("reason", ["unknown_version", "invalid_payload"])
def test_a_held_job_of_a_newer_version_asks_for_a_deploy(ledger: Database, reason: str) -> None:
    dispatcher(ledger)
    worker(ledger, "old")
    assert explain(ledger, held(ledger, reason)).advice == (
        "deploy the newer code of ledger.note to the workers of queue 'notes'"
    )


def test_a_held_job_without_a_dispatcher_says_that_none_sends_it(ledger: Database) -> None:
    worker(ledger, "old", kinds=())
    explanation = explain(ledger, held(ledger))
    assert "no dispatcher lives to send it again" in explanation.because
    assert "penstock dispatcher" in str(explanation.advice)


def test_a_held_job_that_was_rescheduled_waits_for_its_time(ledger: Database) -> None:
    dispatcher(ledger)
    worker(ledger, "old", kinds=())
    job_id = held(ledger)
    change(ledger, job_id, due_at=due.reserve(ledger, 1, ())[1] + timedelta(hours=2))
    assert "it waits for its time" in explain(ledger, job_id).because
