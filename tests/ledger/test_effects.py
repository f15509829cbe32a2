"""Records of effects outside the database, and the delays that the ledger measures itself."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from support.ledgers import Note, Tick, attempt_outcome, claimed, end, message, row_of

from penstock.config.errors import InvalidState
from penstock.ledger.effects import EarlierEffect, begin, confirm, decide, effect_id, effects_of, withdraw
from penstock.ledger.sql.clock import from_now
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import audit
from penstock.ledger.transitions.claim import Claim
from penstock.ledger.transitions.outcome import FenceLost, record
from penstock.schemas import Outcome

WHO = "ada@here"


def test_an_effect_is_started_and_then_done_for_good(ledger: Database) -> None:
    claim = claimed(ledger, message(Note()))
    job_id, fence = claim.message.id, claim.fence
    assert begin(ledger, job_id, fence, "charge") is None
    effect = begin(ledger, job_id, fence, "charge")
    assert isinstance(effect, EarlierEffect)
    assert (effect.done, effect.result) == (False, None)
    confirm(ledger, job_id, fence, "charge", '{"receipt": 7}')
    confirm(ledger, job_id, fence, "charge", '"a later word changes nothing"')
    effect = begin(ledger, job_id, fence, "charge", again=True)
    assert isinstance(effect, EarlierEffect)
    assert (effect.done, effect.result) == (True, '{"receipt": 7}')
    assert begin(ledger, job_id, fence, "ship") is None


def test_the_id_of_an_effect_is_a_distinct_and_stable_uuid(ledger: Database) -> None:
    effect = effect_id("job", "charge")
    assert str(uuid.UUID(effect)) == effect
    assert effect == effect_id("job", "charge")
    assert len({effect, effect_id("job", "Charge"), effect_id("job2", "charge"), effect_id("job", "charge ")}) == 4
    # Also where a database takes letters of either case, and trailing spaces, for the same.
    claim = claimed(ledger, message(Note()))
    for key in ("charge", "Charge", "charge "):
        assert begin(ledger, claim.message.id, claim.fence, key) is None


def test_a_worker_that_lost_its_claim_starts_no_effect_but_may_confirm_one(ledger: Database) -> None:
    sent = message(Note())
    late = claimed(ledger, sent, worker="paused")
    begin(ledger, sent.id, late.fence, "charge")
    claim = claimed(ledger, sent, worker="w2", again=True)
    for again in (False, True):
        for key in ("charge", "ship"):
            with pytest.raises(FenceLost):
                begin(ledger, sent.id, late.fence, key, again=again)
    assert begin(ledger, sent.id, claim.fence, "charge", again=True) is None
    confirm(ledger, sent.id, late.fence, "charge", "1")
    effect = begin(ledger, sent.id, claim.fence, "charge", again=True)
    assert isinstance(effect, EarlierEffect)
    assert effect.done


def test_an_ended_or_unknown_job_starts_no_effect(ledger: Database) -> None:
    claim = claimed(ledger, message(Note()))
    end(ledger, claim, Outcome.SUCCEEDED)
    for job_id in (claim.message.id, "unknown"):
        with pytest.raises(FenceLost):
            begin(ledger, job_id, claim.fence, "charge")
        assert effects_of(ledger, job_id) == []


def test_a_withdrawn_effect_can_be_started_again(ledger: Database) -> None:
    claim = claimed(ledger, message(Note()))
    job_id, fence = claim.message.id, claim.fence
    begin(ledger, job_id, fence, "charge")
    withdraw(ledger, job_id, fence, "charge")
    assert effects_of(ledger, job_id) == []
    begin(ledger, job_id, fence, "charge")
    confirm(ledger, job_id, fence, "charge", None)
    withdraw(ledger, job_id, fence, "charge")
    assert [row.key for row in effects_of(ledger, job_id)] == ["charge"]


def test_a_worker_withdraws_only_the_effects_that_it_started(ledger: Database) -> None:
    sent = message(Note())
    late = claimed(ledger, sent, worker="paused")
    begin(ledger, sent.id, late.fence, "charge")
    claim = claimed(ledger, sent, worker="w2", again=True)
    begin(ledger, sent.id, claim.fence, "charge", again=True)
    withdraw(ledger, sent.id, late.fence, "charge")
    assert len(effects_of(ledger, sent.id)) == 1
    withdraw(ledger, sent.id, claim.fence, "charge")
    # The first one's call came through after all, and its word counts.
    confirm(ledger, sent.id, late.fence, "charge", "1")
    [row] = effects_of(ledger, sent.id)
    assert row.done_at is not None


def test_an_effect_started_by_many_at_once_is_granted_to_one(ledger: Database) -> None:
    claim = claimed(ledger, message(Note()))
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: begin(ledger, claim.message.id, claim.fence, "charge"), range(16)))
    assert answers.count(None) == 1


def test_a_person_decides_about_what_is_in_doubt_and_that_is_on_record(ledger: Database) -> None:
    claim = claimed(ledger, message(Note()))
    job_id = claim.message.id
    for key in ("a", "b", "c"):
        begin(ledger, job_id, claim.fence, key)
    confirm(ledger, job_id, claim.fence, "c", None)
    with pytest.raises(InvalidState, match="running"):
        decide(ledger, job_id, "a", happened=True, actor=WHO)
    end(ledger, claim, Outcome.DEAD, error="in doubt", reason="in_doubt")
    decide(ledger, job_id, "a", happened=True, result="7", actor=WHO)
    decide(ledger, job_id, "b", happened=False, actor=WHO)
    for key, what in (("a", "confirmed since"), ("b", "begun no effect"), ("c", "confirmed since")):
        with pytest.raises(InvalidState, match=what):
            decide(ledger, job_id, key, happened=True, actor=WHO)
    assert {row.key: row.result for row in effects_of(ledger, job_id)} == {"a": "7", "c": None}
    lines = ledger.read(lambda connection: connection.execute(sa.select(audit).order_by(audit.c.id)).all())
    assert [(line.actor, line.act, line.subject) for line in lines] == [
        (WHO, "confirm effect", job_id),
        (WHO, "forget effect", job_id),
    ]


@pytest.mark.parametrize("seconds", [0, 0.000001, 0.3, 90.5, 40 * 24 * 3600.0])
def test_a_delay_is_measured_by_the_clock_of_the_database(ledger: Database, seconds: float) -> None:
    def now() -> datetime:
        time = ledger.read(lambda connection: connection.scalar(sa.select(from_now())))
        assert time is not None
        return time

    tracked, untracked = message(Note()), message(Tick())
    wrong = datetime.now(UTC) + timedelta(days=300)  # as a worker with a wrong clock would write it
    loose = Claim(untracked, 0, 1, 0, 0, datetime.now(UTC), tracked=False)
    both = [
        attempt_outcome(claim, Outcome.RETRY, error="no", due_at=wrong, delay=timedelta(seconds=seconds))
        for claim in (claimed(ledger, tracked), loose)
    ]
    before = now()
    assert record(ledger, both, worker="w1") == [True, True]
    after, rounding = now(), timedelta(milliseconds=2)
    for sent in (tracked, untracked):
        due = row_of(ledger, sent.id).due_at - timedelta(seconds=seconds)
        assert before - rounding <= due <= after + rounding


def test_an_outcome_without_a_delay_keeps_its_due_time_among_outcomes_with_one(ledger: Database) -> None:
    due = datetime(2030, 1, 1, tzinfo=UTC)
    claims = [claimed(ledger, message(Note())) for _ in range(3)]
    record(
        ledger,
        [
            attempt_outcome(claims[0], Outcome.RETRY, error="no", due_at=due),
            attempt_outcome(claims[1], Outcome.RETRY, error="no", delay=timedelta(hours=1)),
            attempt_outcome(claims[2], Outcome.DISCARDED),
        ],
        worker="w1",
    )
    rows = [row_of(ledger, claim.message.id) for claim in claims]
    assert rows[0].due_at == due
    assert rows[1].due_at < due
    assert rows[2].due_at is None
