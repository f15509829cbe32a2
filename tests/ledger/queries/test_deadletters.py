from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from support.ledgers import (
    LEASE,
    Login,
    Note,
    claimed,
    end,
    letter_of,
    letters,
    message,
    row_of,
    start_worker,
    stock_envelope,
)

from penstock.config.errors import InvalidState, JobNotFound
from penstock.ledger.members import heartbeats
from penstock.ledger.queries import dead_letters
from penstock.ledger.queries.dead_letters import Selection
from penstock.ledger.queries.status import read_status
from penstock.ledger.sql.database import Database
from penstock.ledger.transitions import replay as replays
from penstock.ledger.transitions.bury import bury_message
from penstock.producers.senders.memory import MemoryBroker
from penstock.schemas import Job, Outcome, State, registry
from penstock.schemas.wire.codec import Envelope, decode, encode
from penstock.workers.dispatcher import due_jobs


def bury(ledger: Database, envelope: Envelope, reason: str = "unknown_kind", raw: bytes = b"raw") -> str:
    return bury_message(ledger, envelope, raw, reason, "because")


def test_a_message_that_cannot_be_read_is_kept_whole_and_its_handle_says_dead(ledger: Database) -> None:
    envelope = stock_envelope("nobody.knows", {"a": 1}, queue="celery")
    assert bury(ledger, envelope) == envelope.id
    letter, status = letter_of(ledger, envelope.id), read_status(ledger, envelope.id)
    assert (letter.kind, letter.queue, letter.reason) == ("nobody.knows", "celery", "unknown_kind")
    assert (letter.raw, json.loads(letter.headers)) == (envelope.body, envelope.headers)
    assert status is not None
    assert (status.state, status.error, status.kind) == (State.DEAD, "because", "nobody.knows")


def test_bytes_that_are_not_a_message_get_an_id_of_their_own(ledger: Database) -> None:
    raw = b"\x00\xff not a message"
    dead_letter_id = bury(ledger, Envelope("emails", "normal", {}, raw), "undecodable", raw)
    letter = letter_of(ledger, dead_letter_id)
    assert (letter.raw, letter.kind, letter.headers) == (raw, None, None)
    assert row_of(ledger, dead_letter_id) is None
    with pytest.raises(InvalidState, match="not a message"):
        replays.replay_one(ledger, dead_letter_id, actor="ada")


@pytest.mark.parametrize("headers", [{"id": 7, "task": ["x"]}, {"id": "a\0b", "task": "k\0"}, {"id": "i", "task": 3}])
def test_headers_of_any_sort_can_be_kept(ledger: Database, headers: dict[str, object]) -> None:
    letter = letter_of(ledger, bury(ledger, Envelope("q", "normal", headers, b"body")))
    assert (json.loads(letter.headers), letter.raw) == (headers, b"body")


def test_headers_that_are_not_json_can_be_kept(ledger: Database) -> None:
    headers = {"task": "k", "at": datetime(2026, 1, 1, tzinfo=UTC), "blob": b"\x00"}
    assert "2026" in letter_of(ledger, bury(ledger, Envelope("q", "normal", headers, b"body"))).headers


def test_a_long_strange_kind_can_be_kept(ledger: Database) -> None:
    dead_letter_id = bury(ledger, Envelope("q", "normal", {"id": "long", "task": "k" * 500}, b"body"))
    assert dead_letter_id == "long"
    kind = row_of(ledger, "long").kind
    assert len(kind) == 128
    assert kind.endswith("k… [cut: 500 characters]")


def test_the_same_message_delivered_twice_is_kept_once(ledger: Database) -> None:
    envelope = stock_envelope("nobody.knows", {}, queue="celery")
    assert bury(ledger, envelope) == bury(ledger, envelope)
    assert len(letters(ledger)) == 1


def test_a_bad_copy_does_not_touch_a_job_that_goes_on(ledger: Database) -> None:
    sent = message(Note())
    claimed(ledger, sent)
    dead_letter_id = bury(ledger, Envelope("notes", "normal", {"id": sent.id, "task": "ledger.note"}, b"cut off"))
    assert dead_letter_id != sent.id
    assert row_of(ledger, sent.id).state == State.RUNNING


def test_the_dead_letter_of_a_job_is_replayed_as_a_waiting_job_with_its_fence(ledger: Database) -> None:
    sent = message(Note(text="again"))
    end(ledger, claimed(ledger, sent), Outcome.DEAD, error="no", reason="failed")
    replays.replay_one(ledger, sent.id, actor="ada")
    row = row_of(ledger, sent.id)
    assert (row.state, row.failures, row.crashes, row.fence, row.error) == (State.SCHEDULED, 0, 0, 1, None)
    assert letter_of(ledger, sent.id).replayed_at is not None
    broker = MemoryBroker()
    assert due_jobs.send_due(ledger, broker) == 1
    again = claimed(ledger, decode(broker.lanes["notes", "normal"][0][0]))
    assert (again.attempt, again.fence) == (1, 2)
    with pytest.raises(InvalidState, match="already"):
        replays.replay_one(ledger, sent.id, actor="ada")
    end(ledger, again, Outcome.DEAD, error="no again", reason="failed")
    letter = letter_of(ledger, sent.id)
    assert (letter.replayed_at, letter.detail) == (None, "no again")


def test_a_raw_dead_letter_is_replayed_once_its_kind_is_known(ledger: Database) -> None:
    envelope = stock_envelope("ledger.late", {"a": 1}, queue="celery", id="late-1")
    bury(ledger, envelope)
    with pytest.raises(InvalidState, match="--import"):
        replays.replay_one(ledger, "late-1", actor="ada")

    class Late(Job, kind="ledger.late", queue="lates"):
        a: int

    try:
        replays.replay_one(ledger, "late-1", actor="ada")
    finally:
        registry.discard(Late.kind())
    row = row_of(ledger, "late-1")
    assert (row.state, row.queue, json.loads(row.payload)) == (State.SCHEDULED, "lates", {"a": 1})


def test_a_raw_dead_letter_of_a_kind_that_only_a_worker_knows_is_sent_to_it(ledger: Database) -> None:
    bury(ledger, stock_envelope("far.away", {"a": 1}, queue="celery", id="far-1"))
    heartbeats.register(ledger, "w9", engine="celery", queues=["far"], kinds={"far.away": "far"}, lease=LEASE)
    replays.replay_one(ledger, "far-1", actor="ada")
    row = row_of(ledger, "far-1")
    assert (row.state, row.queue, json.loads(row.payload)) == (State.SCHEDULED, "far", {"a": 1})


def test_a_payload_that_is_still_wrong_cannot_be_replayed_and_its_values_are_not_shown(ledger: Database) -> None:
    envelope = Envelope("notes", "normal", {"id": "bad", "task": "ledger.login"}, b'[[], {"password": "s3cret"}, null]')
    bury(ledger, envelope, "invalid_payload")
    with pytest.raises(InvalidState, match="user: Field required") as caught:
        replays.replay_one(ledger, "bad", actor="ada")
    assert "s3cret" not in str(caught.value)
    assert letter_of(ledger, "bad").replayed_at is None


def test_a_dead_letter_of_a_kind_without_a_handler_keeps_priority_key_and_tenant(ledger: Database) -> None:
    envelope = encode(Login(user="ada"), key="k", tenant="t", priority="high")
    bury(ledger, envelope, "no_handler")
    replays.replay_one(ledger, envelope.id, actor="ada")
    row = row_of(ledger, envelope.id)
    assert (row.key, row.tenant, row.priority, row.version) == ("k", "t", "high", 2)


def test_dead_letters_are_listed_newest_first_by_filters(ledger: Database) -> None:
    start_worker(ledger, "w1")
    for number in range(3):
        bury(ledger, stock_envelope(f"kind.{number}", {}, queue="celery", id=f"id-{number}"))
    bury(ledger, Envelope("notes", "normal", {}, b"x"), "undecodable", b"x")
    end(ledger, claimed(ledger, message(Note())), Outcome.DEAD, error="no", reason="failed")
    assert len(dead_letters.find(ledger)) == 5
    assert [row.id for row in dead_letters.find(ledger, Selection(reason="unknown_kind"), limit=2)] == ["id-2", "id-1"]
    assert [row.reason for row in dead_letters.find(ledger, Selection(kind="ledger.note"))] == ["failed"]
    assert [row.reason for row in dead_letters.find(ledger, Selection(queue="notes"))][-1] == "undecodable"
    assert dead_letters.find(ledger, Selection(decided="replayed")) == []
    assert dead_letters.show(ledger, "id-1").row.created_at <= datetime.now(UTC)
    with pytest.raises(JobNotFound):
        dead_letters.show(ledger, "none")
