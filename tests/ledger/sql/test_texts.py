"""Texts and numbers from people and programs: stored, cut or refused the same way on every database."""

from __future__ import annotations

import json
from typing import Any

import pytest
import sqlalchemy as sa
from support.ledgers import Note, attempts_of, claim_one, claimed, end, letter_of, message, row_of, start_worker

from penstock.config.errors import ConfigError, JobNotFound
from penstock.ledger.members import api_keys, heartbeats
from penstock.ledger.queries.dead_letters import find
from penstock.ledger.queries.selection import Selection
from penstock.ledger.queries.status import read_status
from penstock.ledger.rows import audit
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import audit as audit_table
from penstock.ledger.sql.text import LONGEST_DETAIL, LONGEST_ERROR, LONGEST_NOTE, LONGEST_TRACEBACK, storable
from penstock.ledger.transitions.cancel import cancel_key, request_cancel
from penstock.schemas import Outcome
from penstock.workers import Context

ODD = ["a NUL \0 within", "half a character \ud800", "ünïcode 😀", "x" * 3_000_000, "\0\udfff" * 100_000, "", "\0"]
names = pytest.mark.parametrize(
    "text", ODD, ids=["NUL", "surrogate", "unicode", "long", "long-odd", "empty", "only-NUL"]
)


@names
def test_errors_and_notes_of_attempts_are_stored_alike(ledger: Database, text: str) -> None:
    start_worker(ledger, "w1")
    claim = claimed(ledger, message(Note()))
    job_id = claim.message.id
    heartbeats.report(ledger, "w1", progress={job_id: (1, 2, text)})
    assert row_of(ledger, job_id).progress_note == (storable(text, LONGEST_NOTE) or None)
    fields: dict[str, Any] = {"error": text, "traceback": text, "detail": text, "progress": (3, None, text)}
    assert end(ledger, claim, Outcome.DEAD, reason="failed", **fields)
    row, [attempt], letter = row_of(ledger, job_id), attempts_of(ledger, job_id), letter_of(ledger, job_id)
    assert row.error == attempt.error == storable(text, LONGEST_ERROR)
    assert attempt.traceback == storable(text, LONGEST_TRACEBACK, end=True)
    assert row.progress_note == storable(text, LONGEST_NOTE)
    assert letter.detail == storable(text, LONGEST_DETAIL)
    assert find(ledger, Selection(error=text)) is not None


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1, 10**40, 0.5, float("nan"), "7"])
def test_progress_that_is_not_a_64_bit_number_is_left_out(ledger: Database, number: Any) -> None:
    start_worker(ledger, "w1")
    claim = claimed(ledger, message(Note()))
    heartbeats.report(ledger, "w1", progress={claim.message.id: (number, number, "n")})
    row = row_of(ledger, claim.message.id)
    assert (row.progress_done, row.progress_total, row.progress_note) == (None, None, "n")
    assert end(ledger, claim, Outcome.SUCCEEDED, progress=(number, 2**63 - 1, None))
    assert row_of(ledger, claim.message.id).progress_total == 2**63 - 1


@pytest.mark.parametrize("text", ["\0", "a\0b", "\ud800", "x" * 5000])
def test_ids_and_keys_that_no_job_can_have_are_found_nowhere(ledger: Database, text: str) -> None:
    assert read_status(ledger, text) is None
    with pytest.raises(JobNotFound):
        request_cancel(ledger, text, kind="ledger.note")
    assert cancel_key(ledger, text, actor="ada") == []
    assert cancel_key(ledger, "k", tenant=text) == []
    for field in ("kind", "queue", "key", "tenant", "reason", "group", "error"):
        assert find(ledger, Selection(**{field: text})) == []
    assert find(ledger, Selection(ids=(text,))) == []


@names
def test_the_audit_log_takes_any_actor_subject_and_reason(ledger: Database, text: str) -> None:
    actor = f"ada {text}"
    ledger.write(
        lambda connection: audit.write(connection, actor=actor, act="test", subject=text, detail={"why": text})
    )
    select = sa.select(audit_table).where(audit_table.c.actor == storable(actor, 255))
    row = ledger.read(lambda connection: connection.execute(select).one())
    assert row.subject == storable(text, 255)
    assert json.loads(row.detail) == {"why": storable(text, LONGEST_ERROR)}


@pytest.mark.parametrize("name", ["x" * 201, "a\0", "\ud800"])
def test_names_of_api_keys_that_no_database_takes_are_refused(ledger: Database, name: str) -> None:
    with pytest.raises(ConfigError, match="at most 200 characters"):
        api_keys.add(ledger, name)


@pytest.mark.parametrize("key", ["a\0", "\ud800"])
def test_keys_of_effects_that_no_database_takes_are_refused(key: str) -> None:
    with pytest.raises(ValueError, match="no database takes"):
        Context(job_id="1").once(key)


def test_a_payload_with_odd_text_is_claimed_as_it_is(ledger: Database) -> None:
    sent = message(Note(text="a\0b 😀"))
    claim_one(ledger, sent)
    assert json.loads(row_of(ledger, sent.id).payload) == {"text": "a\0b 😀"}


def test_a_text_that_is_cut_says_so_and_keeps_the_asked_part() -> None:
    text = "begin " + "x" * 5000 + " end"
    start, tail = storable(text, 100), storable(text, 100, end=True)
    assert len(start) == len(tail) == 100
    assert start.startswith("begin x")
    assert start.endswith("x… [cut: 5,010 characters]")
    assert tail.startswith("[cut: 5,010 characters] …x")
    assert tail.endswith("x end")
    assert storable("as it is", 100) == "as it is"
    assert storable(None) is None
