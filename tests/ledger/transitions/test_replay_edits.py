"""Dead letters that are replayed with an edit, or discarded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from ledger.transitions.dead_jobs import TRACE, bury, die, everything, ids, many, replay
from support.ledgers import (
    Note,
    change,
    claim_one,
    claimed,
    end,
    letter_of,
    message,
    row_of,
    start_worker,
    stock_envelope,
)

from penstock.config.errors import InvalidJob, InvalidState, JobNotFound
from penstock.ledger.queries import dead_letters as deadletters
from penstock.ledger.queries.dead_letters import Selection
from penstock.ledger.rows import audit
from penstock.ledger.sql.database import Database
from penstock.ledger.transitions import replay as replays
from penstock.ledger.transitions.claim import Refusal
from penstock.ledger.transitions.replay import discard, retry
from penstock.ledger.transitions.replay.plan import BATCH
from penstock.producers.senders.memory import MemoryBroker
from penstock.schemas import Job, Outcome, Sensitive, State, registry, upcasts
from penstock.schemas.wire.codec import decode, unique_key
from penstock.workers.dispatcher import due_jobs


class Address(Job, kind="replays.address", queue="notes", unique_by=("customer",)):
    customer: int
    to: str
    iban: Sensitive[str] = ""


@pytest.fixture
def old_kind() -> Iterator[type[Job]]:
    """A kind whose fields were renamed since."""

    class Renamed(Job, kind="replays.renamed", queue="notes", version=2):
        recipient: str

    @upcasts(Renamed, from_version=1)
    def rename(payload: dict[str, Any]) -> dict[str, Any]:
        return {"recipient": payload["to"]}

    yield Renamed
    registry.discard(Renamed.kind())


def replay_group(ledger: Database, dead_letter_id: str, **options: Any) -> list[replays.ReplayResult]:
    group = letter_of(ledger, dead_letter_id).fingerprint
    return replays.replay(ledger, Selection(group=group), actor="ada", **options)


def test_an_edit_sets_fields_and_the_job_keeps_its_id_and_the_key_follows(ledger: Database) -> None:
    wrong = Address(customer=1, to="nobody", iban="DE1")
    dead_letter_id = die(ledger, wrong, tenant="acme", priority="high")
    assert row_of(ledger, dead_letter_id).key == unique_key(wrong)
    [verdict] = replay(ledger, dead_letter_id, edit={"customer": 2, "iban": "DE2"})
    assert verdict.problem is None
    row = row_of(ledger, dead_letter_id)
    assert json.loads(row.payload) == {"customer": 2, "to": "nobody", "iban": "DE2"}
    assert (row.state, row.failures, row.tenant, row.priority) == (State.SCHEDULED, 0, "acme", "high")
    assert row.key == unique_key(Address(customer=2, to=""))
    [line] = audit.find(ledger)
    assert (line.act, line.subject, line.detail) == ("edit", dead_letter_id, {"edited": ["customer", "iban"]})


def test_a_copy_from_before_does_not_run_in_the_place_of_the_edited_job(ledger: Database) -> None:
    wrong = Address(customer=1, to="nobody")
    dead_letter_id = die(ledger, wrong)
    replay(ledger, dead_letter_id, edit={"to": "somebody"})
    broker = MemoryBroker()
    assert due_jobs.send_due(ledger, broker) == 1
    assert row_of(ledger, dead_letter_id).state == State.QUEUED
    copy = claim_one(ledger, message(wrong, id=dead_letter_id), again=True)
    assert isinstance(copy, Refusal)
    assert copy.reason == "duplicate"
    [[(envelope, _)]] = broker.lanes.values()
    claim = claimed(ledger, decode(envelope))
    assert claim.message.job == Address(customer=1, to="somebody")
    end(ledger, claim, Outcome.INTERRUPTED)  # released to the broker, which delivers the same message
    assert claimed(ledger, decode(envelope), worker="w2", again=True).message.job == claim.message.job


def test_a_key_that_was_given_stays_when_a_field_is_edited(ledger: Database) -> None:
    dead_letter_id = die(ledger, Address(customer=1, to="nobody"), key="mine")
    replay(ledger, dead_letter_id, edit={"customer": 2})
    assert row_of(ledger, dead_letter_id).key == "mine"


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        ({"customer": "s3cret"}, "customer: Input should be a valid integer"),
        ({"custmer": 7}, "no field 'custmer'; it has customer, to, iban"),
        ({"to": None}, "to: Input should be a valid string"),
    ],
)
def test_an_edit_that_does_not_fit_names_the_field_and_changes_nothing(
    ledger: Database, edit: dict[str, Any], expected: str
) -> None:
    dead_letter_id = die(ledger, Address(customer=1, to="x"))
    before = everything(ledger)
    with pytest.raises(InvalidJob, match=expected) as caught:
        replay(ledger, dead_letter_id, edit=edit)
    assert dead_letter_id in str(caught.value)
    assert "s3cret" not in str(caught.value)
    assert everything(ledger) == before
    [verdict] = replay(ledger, dead_letter_id, edit=edit, dry_run=True)
    assert expected in str(verdict.problem)


def test_an_edit_of_a_group_is_done_to_all_or_to_none(ledger: Database, old_kind: type[Job]) -> None:
    new = [die(ledger, old_kind(recipient=str(number))) for number in range(3)]
    change(ledger, new[1], version=1, payload='{"to": "x"}')
    change(ledger, new[2], payload='{"recipient": "x", "gone": 1}')
    before = everything(ledger)
    with pytest.raises(InvalidJob, match="gone: Extra inputs") as caught:
        replay_group(ledger, new[0], edit={"recipient": "ada"})
    assert new[2] in str(caught.value)
    assert everything(ledger) == before
    change(ledger, new[2], payload='{"recipient": "x"}')
    assert [verdict.problem for verdict in replay_group(ledger, new[0], edit={"recipient": "ada"})] == [None] * 3
    rows = [row_of(ledger, job_id) for job_id in new]
    assert {(row.payload, row.version) for row in rows} == {('{"recipient":"ada"}', 2)}
    assert {row.state for row in rows} == {State.SCHEDULED}


def test_an_edit_is_for_a_dead_letter_or_a_group(ledger: Database) -> None:
    first, second = die(ledger, Note()), die(ledger, Note())
    for selection in (Selection(ids=(first, second)), Selection(kind="ledger.note"), Selection()):
        with pytest.raises(InvalidJob, match="one group"):
            replays.replay(ledger, selection, actor="ada", edit={"text": "x"})
    assert len(ids(ledger)) == 2


def test_a_kind_that_is_not_known_here_cannot_be_edited(ledger: Database) -> None:
    dead_letter_id = die(ledger, Note())
    change(ledger, dead_letter_id, kind="far.away")
    with pytest.raises(InvalidJob, match="--import"):
        replay(ledger, dead_letter_id, edit={"text": "x"})
    assert replay(ledger, dead_letter_id)[0].problem is None


def test_a_message_that_did_not_validate_is_mended_by_an_edit(ledger: Database) -> None:
    envelope = stock_envelope("ledger.login", {"usr": "ada", "password": "x"}, queue="celery", id="mend-1")
    bury(ledger, envelope, "invalid_payload")
    with pytest.raises(InvalidJob, match="usr: Extra inputs"):
        replay(ledger, "mend-1", edit={"user": "ada"})
    [verdict] = replay(ledger, "mend-1", edit={"user": "ada", "usr": None})
    assert verdict.problem is None
    row = row_of(ledger, "mend-1")
    assert (row.state, row.queue, row.version) == (State.SCHEDULED, "notes", 2)
    assert json.loads(row.payload) == {"user": "ada", "password": "x"}


def test_positional_arguments_of_a_stock_client_are_edited_by_name(ledger: Database) -> None:
    envelope = stock_envelope("ledger.login", {}, args=(7, "x"), queue="celery", id="mend-2")
    bury(ledger, envelope, "invalid_payload")
    assert replay(ledger, "mend-2", edit={"user": "ada"})[0].problem is None
    assert json.loads(row_of(ledger, "mend-2").payload) == {"user": "ada", "password": "x"}


def test_a_discarded_dead_letter_is_closed_with_its_reason_and_its_job_stays_dead(ledger: Database) -> None:
    dead_letter_id, other = die(ledger, Note()), die(ledger, Note())
    [verdict] = discard(ledger, Selection(ids=(dead_letter_id,)), actor="ada", reason="customer left")
    assert (verdict.problem, verdict.due_at) == (None, None)
    assert (row_of(ledger, dead_letter_id).state, letter_of(ledger, dead_letter_id).replayed_at) == (State.DEAD, None)
    assert ids(ledger) == [other]
    assert ids(ledger, decided="discarded") == [dead_letter_id]
    [decision] = deadletters.show(ledger, dead_letter_id).decisions
    assert (decision.act, decision.actor, decision.detail) == ("discard", "ada", {"why": "customer left"})
    with pytest.raises(InvalidState, match=r"discarded at .*penstock jobs retry"):
        replays.replay_one(ledger, dead_letter_id, actor="bob")
    [again] = discard(ledger, Selection(ids=(dead_letter_id,)), actor="bob", reason="again")
    assert isinstance(again.problem, InvalidState)
    with pytest.raises(ValueError, match="reason"):
        discard(ledger, Selection(ids=(other,)), actor="ada", reason=" ")


def test_a_filter_is_discarded_in_batches(ledger: Database) -> None:
    new = many(ledger, BATCH + 1)
    verdicts = discard(ledger, Selection(kind="ledger.note"), actor="ada", reason="old")
    assert [verdict.id for verdict in verdicts] == new
    assert ids(ledger) == []
    assert [(entry.act, entry.count) for entry in audit.find(ledger)] == [("discard", len(new))]


def test_a_discarded_job_can_be_retried_all_the_same_even_one_that_was_never_read(ledger: Database) -> None:
    read = die(ledger, Note())
    unread = bury(ledger, stock_envelope("ledger.login", {"user": "ada"}, queue="celery"), "no_handler")
    for dead_letter_id in (read, unread):
        discard(ledger, Selection(ids=(dead_letter_id,)), actor="ada", reason="no")
        retry(ledger, dead_letter_id, actor="bob")
        assert row_of(ledger, dead_letter_id).state == State.SCHEDULED
        assert [act.act for act in deadletters.show(ledger, dead_letter_id).decisions] == ["retry", "discard"]
    assert json.loads(row_of(ledger, unread).payload)["user"] == "ada"
    assert {act.subject_kind for act in audit.find(ledger, acts=["retry"])} == {"job"}


def test_a_dead_letter_is_shown_with_its_message_attempts_and_job(ledger: Database) -> None:
    start_worker(ledger, "w1")
    dead_letter_id = die(ledger, Address(customer=1, to="x", iban="s3cret"), trace=TRACE.format("mails"), tenant="acme")
    output = deadletters.show(ledger, dead_letter_id)
    assert output.payload == {"customer": 1, "to": "x", "iban": "***"}
    [attempt] = output.attempts
    assert (attempt.number, attempt.worker, attempt.traceback) == (1, "w1", TRACE.format("mails"))
    assert (output.job.tenant, output.headers, list(output.decisions)) == ("acme", None, [])
    change(ledger, dead_letter_id, kind="far.away")
    raw = bury(ledger, stock_envelope("who.knows", {"a": "s3cret"}, queue="q", argsrepr="s3cret"), "unknown_kind")
    other = deadletters.show(ledger, raw)
    assert (other.payload, other.headers and other.headers["argsrepr"]) == ({"a": "***"}, "***")
    with pytest.raises(JobNotFound):
        deadletters.show(ledger, "none")
