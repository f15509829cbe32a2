"""Attempts that end by sending their own job as another message: the row follows, and older messages do not count."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Self

import pytest
from support.ledgers import Note, attempts_of, claim_one, claimed, end, message, row_of

from penstock.ledger.rows.jobs import ID_TAKEN, body_of_row
from penstock.ledger.sql.database import Database
from penstock.ledger.transitions.claim import Claim, Refusal
from penstock.schemas import Job, Outcome, State
from penstock.schemas.jobs.adopted import AdoptedJob, adopt_kind
from penstock.schemas.wire.codec import Envelope, Message, decode, encode, seal


class Task(AdoptedJob):
    @classmethod
    def from_stock(cls, headers: Mapping[str, Any], body: bytes) -> Self:
        args, kwargs, _ = json.loads(body)
        return cls(args=args, kwargs=kwargs, request={"retries": headers.get("retries", 0)})


Resize = adopt_kind(Task, "adopted.resize", "shop.images", queue="images")
Shrink = adopt_kind(Task, "adopted.shrink", "shop.images", queue="small")
Count = adopt_kind(Task, "adopted.count", "shop.images", queue="images", track=False)


def sent_again(ledger: Database, job_id: str) -> Message:
    """The message that the dispatcher makes of the row."""
    row = row_of(ledger, job_id)
    body = body_of_row(row)
    return decode(
        seal(row.kind, row.version, body, row.id, row.queue, row.priority, tenant=row.tenant, fence=row.fence)
    )


def test_a_stock_message_becomes_an_adopted_job_and_travels_as_any_job() -> None:
    headers = {"task": "adopted.resize", "id": "t1", "retries": 2}
    stock = decode(Envelope("images", "normal", headers, b'[[1], {"width": 2}, {"chain": null}]'))
    assert stock.job == Resize(args=[1], kwargs={"width": 2}, request={"retries": 2})
    assert stock.embed is None
    assert decode(encode(stock.job, id="t1")).job == stock.job


def test_a_retry_gives_the_row_the_new_message(ledger: Database) -> None:
    first = message(Resize(args=["a.png"]), tenant="acme", tags=["nightly"])
    claim = claimed(ledger, first)
    again = encode(Resize(args=["b.png"], request={"retries": 1}), id=first.id, priority="high")
    assert end(ledger, claim, Outcome.RETRY, error="later", resent=again, delay=timedelta(0))

    row = row_of(ledger, first.id)
    assert (row.state, row.failures, row.tenant, row.priority) == (State.RETRYING, 1, "acme", "high")
    assert json.loads(row.payload)["args"] == ["b.png"]
    assert json.loads(row.tags) == ["nightly"]
    second = claimed(ledger, sent_again(ledger, first.id))
    assert (second.attempt, second.message.job.request) == (2, {"retries": 1})  # type: ignore[attr-defined]
    assert end(ledger, second, Outcome.SUCCEEDED)
    assert [attempt.outcome for attempt in attempts_of(ledger, first.id)] == ["retry", "succeeded"]


def test_a_replacement_runs_under_the_same_id_and_costs_no_attempt(ledger: Database) -> None:
    first = message(Resize(args=["a.png"]))
    replacement = encode(Shrink(args=["a.png"]), id=first.id)
    assert end(ledger, claimed(ledger, first), Outcome.SNOOZED, resent=replacement, delay=timedelta(0))
    row = row_of(ledger, first.id)
    assert (row.kind, row.queue, row.state, row.attempt) == ("adopted.shrink", "small", State.SCHEDULED, 0)
    back = encode(Resize(args=["c.png"]), id=first.id)
    second = claimed(ledger, sent_again(ledger, first.id))
    assert end(ledger, second, Outcome.SNOOZED, resent=back, delay=timedelta(0))
    third = claimed(ledger, sent_again(ledger, first.id))
    assert (third.attempt, third.message.kind.name) == (1, "adopted.resize")


def test_a_message_from_before_is_a_duplicate_and_one_of_another_kind_is_refused(ledger: Database) -> None:
    first = message(Resize(args=["a.png"]))
    replacement = encode(Shrink(args=["a.png"]), id=first.id)
    assert end(ledger, claimed(ledger, first), Outcome.SNOOZED, resent=replacement, delay=timedelta(0))
    claimed(ledger, sent_again(ledger, first.id), worker="dead")  # which has no lease

    def refusal(sent: Message) -> str:
        answer = claim_one(ledger, sent, worker="w2", again=True)
        assert isinstance(answer, Refusal)
        return answer.reason

    assert refusal(first) == "duplicate"
    assert refusal(message(Count(), id=first.id)) == ID_TAKEN
    assert row_of(ledger, first.id).worker == "dead"


def test_an_untracked_job_is_on_record_as_its_new_message(ledger: Database) -> None:
    first = message(Count(args=[1]))
    claim = Claim(first, 0, attempt=1, failures=0, crashes=0, started_at=datetime.now(UTC), tracked=False)
    again = encode(Count(args=[2]), id=first.id)
    assert end(ledger, claim, Outcome.RETRY, error="later", resent=again, delay=timedelta(0))
    row = row_of(ledger, first.id)
    assert (row.state, json.loads(row.payload)["args"]) == (State.RETRYING, [2])


def test_a_later_message_of_a_job_that_has_ended_runs_in_its_row(ledger: Database) -> None:
    first = message(Resize(args=["a.png"]))
    claim = claimed(ledger, first)
    later = message(Shrink(args=["b.png"]), id=first.id, sent_at=datetime.now(UTC) + timedelta(seconds=1))

    # While the first runs, which may be about to end as replaced, the later one waits.
    held = claim_one(ledger, later, worker="w2")
    assert isinstance(held, Refusal)
    assert held.reason == "held"
    end(ledger, claim, Outcome.DISCARDED, error="replaced")

    # A copy of the first does not run again; the later one does.
    assert isinstance(claim_one(ledger, first, worker="w2"), Refusal)
    second = claimed(ledger, later, worker="w2")
    row = row_of(ledger, first.id)
    assert (row.state, row.kind, row.queue, row.error) == (State.RUNNING, "adopted.shrink", "small", None)
    assert json.loads(row.payload)["args"] == ["b.png"]
    assert end(ledger, second, Outcome.SUCCEEDED, worker="w2")
    assert isinstance(claim_one(ledger, later), Refusal)


def test_a_later_message_forgets_the_result_before_it(ledger: Database) -> None:
    first = message(Resize())
    end(ledger, claimed(ledger, first), Outcome.SUCCEEDED, result_ref="large", result="1")
    claimed(ledger, message(Resize(), id=first.id, sent_at=datetime.now(UTC) + timedelta(seconds=1)))
    row = row_of(ledger, first.id)
    assert (row.result, row.result_ref) == (None, None)


@pytest.mark.parametrize("outcome", [None, Outcome.SUCCEEDED, Outcome.DEAD])
@pytest.mark.parametrize(
    ("job", "tenant"), [(Note(), None), (Resize(), "acme"), (Note(), "acme")], ids=["kind", "tenant", "both"]
)
def test_an_adopted_message_never_runs_under_the_id_of_another_job(
    ledger: Database, job: Job, tenant: str | None, outcome: Outcome | None
) -> None:
    """Whether that job runs or has ended: one that is not adopted, or is of another tenant."""
    first = message(job, tenant=tenant)
    claim = claimed(ledger, first)
    if outcome is not None:
        end(ledger, claim, outcome)
    before = row_of(ledger, first.id)
    forged = message(Resize(args=["x.png"]), id=first.id, sent_at=datetime.now(UTC) + timedelta(seconds=1))
    for again in (False, True):
        refusal = claim_one(ledger, forged, worker="w2", again=again)
        assert isinstance(refusal, Refusal)
        assert refusal.reason == ID_TAKEN
    assert row_of(ledger, first.id) == before


def test_a_later_message_of_a_cancelled_job_does_not_run(ledger: Database) -> None:
    first = message(Resize())
    end(ledger, claimed(ledger, first), Outcome.CANCELLED)
    later = message(Resize(), id=first.id, sent_at=datetime.now(UTC) + timedelta(seconds=1))
    refusal = claim_one(ledger, later)
    assert isinstance(refusal, Refusal)
    assert refusal.reason == "cancelled"
