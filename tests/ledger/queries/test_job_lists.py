"""Lists of jobs: what each filter finds, in which order, a page at a time."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from support.ledgers import Note, Pay, claimed, end, message, row_of, start_worker

from penstock.config.errors import AmbiguousId, JobNotFound, KindError
from penstock.ledger.queries import jobs
from penstock.ledger.queries.jobs import JobFilter, each_page
from penstock.ledger.queries.scope import Scope
from penstock.ledger.retention.pruning import delete_jobs
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import job_terms
from penstock.ledger.sql.tables import jobs as table
from penstock.ledger.transitions import due
from penstock.ledger.transitions.replay import replay_one
from penstock.schemas import Job, Outcome, Sensitive, State, registry
from penstock.schemas.wire.codec import decode, encode

HOUR = timedelta(hours=1)
NOW = datetime.now(UTC)


class Import(Job, kind="lists.import", queue="imports", aliases=("lists.old",), search=("customer", "urgent")):
    customer: int
    urgent: bool = False
    text: str = ""


def found(ledger: Database, **filters: Any) -> list[str]:
    return [row.id for row in jobs.find(ledger, JobFilter(**filters))]


def at(hours: float) -> datetime:
    return NOW - hours * HOUR


def test_each_filter_finds_its_jobs_newest_first(ledger: Database) -> None:
    notes = [message(Note(text=str(n)), key=f"k{n}", tenant="acme", sent_at=at(3 - n)) for n in range(3)]
    pay = message(Pay(amount=1), sent_at=at(5), id=str(uuid.uuid4()))
    claims = {sent.id: claimed(ledger, sent, worker="w9" if sent is pay else "w1") for sent in (*notes, pay)}
    end(ledger, claims[pay.id], Outcome.DEAD, error="shop.errors.CardError: no money", reason="failed", detail="x")
    end(ledger, claims[notes[0].id], Outcome.DISCARDED, error="ValueError: no Money")
    start_worker(ledger, "w9")
    newest_first = [notes[2].id, notes[1].id, notes[0].id, pay.id]
    assert found(ledger) == newest_first, "by time, also with the UUIDv4 of another client"
    assert found(ledger, states=(State.DEAD,)) == [pay.id]
    assert found(ledger, states=(State.DEAD, State.DISCARDED)) == [notes[0].id, pay.id]
    assert found(ledger, kind="ledger.pay") == [pay.id]
    assert found(ledger, queue="notes", tenant="acme") == newest_first[:3]
    assert found(ledger, queue="NOTES") == found(ledger, tenant="ACME") == []
    assert found(ledger, key="k1") == [notes[1].id]
    assert found(ledger, worker="w9") == found(ledger, engine="inline") == [pay.id]
    assert found(ledger, enqueued_since=at(2.5), enqueued_until=at(1.5)) == [notes[1].id]
    assert found(ledger, states=(State.DEAD,), finished_since=datetime.now(UTC) - HOUR) == [pay.id]
    assert found(ledger, finished_since=NOW - HOUR) == [notes[0].id, pay.id], "by their end"
    assert found(ledger, finished_until=NOW - HOUR) == []
    assert found(ledger, error_class="CardError") == found(ledger, error_class="shop.errors.CardError") == [pay.id]
    assert found(ledger, error_class="Error") == []
    assert found(ledger, error="MONEY") == [notes[0].id, pay.id]
    assert found(ledger, error="%") == []
    assert found(ledger, ids=(pay.id, "none")) == [pay.id]
    assert found(ledger, ids=()) == []
    assert found(ledger, id_prefix=pay.id[:6]) == [pay.id]
    with pytest.raises(ValueError, match="not the name of a class"):
        JobFilter(error_class="no money")


def test_pages_follow_each_other_without_a_gap_or_a_repetition(ledger: Database) -> None:
    sent = [message(Note(), sent_at=at(n // 3)) for n in range(10)]
    for item in sent:
        claimed(ledger, item)
    expected = found(ledger)
    paged = [[row.id for row in page.rows] for page in each_page(ledger, size=3)]
    assert list(itertools.chain(*paged)) == expected
    assert [len(page) for page in paged] == [3, 3, 3, 1]
    first = jobs.find_page(ledger, limit=3)
    claimed(ledger, message(Note(), sent_at=NOW + HOUR))
    assert [row.id for row in jobs.find_page(ledger, after=first.next, limit=3).rows] == expected[3:6], "as it was"
    for wrong in ("x", "2020", "\0", ""):
        with pytest.raises(ValueError, match="not a cursor"):
            jobs.find_page(ledger, after=wrong)


def test_a_page_looks_at_a_bounded_number_of_jobs_and_says_how_far_it_came(
    ledger: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penstock.ledger.queries.jobs.pages.LOOK_AT", 4)
    sent = [message(Note(), sent_at=at(n)) for n in range(9)]
    claims = [claimed(ledger, item) for item in sent]
    end(ledger, claims[6], Outcome.DEAD, error="Rare: once", reason="failed", detail="x")
    rare = JobFilter(error="rare")
    first = jobs.find_page(ledger, rare)
    assert (first.rows, first.looked_back_to) == ([], at(3))
    second = jobs.find_page(ledger, rare, after=first.next)
    assert ([row.id for row in second.rows], second.looked_back_to) == ([sent[6].id], at(7))
    assert jobs.find_page(ledger, rare, after=second.next).next is None
    assert found(ledger, error="rare") == [sent[6].id], "a list in full looks on"
    assert jobs.count(ledger, rare) == 1


def test_a_scope_hides_what_is_outside_of_it(ledger: Database) -> None:
    ours, theirs = message(Note(), tenant="acme"), message(Note(), tenant="Acme")
    claimed(ledger, ours)
    claimed(ledger, theirs)
    claimed(ledger, message(Note()))
    scope = Scope(tenants=("acme",), kinds=("ledger.*",))
    assert found(ledger, scope=scope) == [ours.id]
    assert found(ledger, scope=Scope(kinds=("shop.*",))) == []
    assert jobs.count(ledger, JobFilter(scope=scope)) == 1
    assert jobs.full_id(ledger, ours.id, scope=scope) == ours.id
    with pytest.raises(JobNotFound):
        jobs.full_id(ledger, theirs.id, scope=scope)


def test_an_id_is_found_by_its_beginning(ledger: Database) -> None:
    for id in ("0192aaaa-0000-7000-8000-000000000001", "0192aaab-0000-7000-8000-000000000001", "order_1", "order_12"):
        claimed(ledger, message(Note(), id=id))
    assert jobs.full_id(ledger, "0192aaaa") == "0192aaaa-0000-7000-8000-000000000001"
    assert jobs.full_id(ledger, "0192aaaa-00") == "0192aaaa-0000-7000-8000-000000000001"
    assert jobs.full_id(ledger, "order_1") == "order_1", "as it is, although another begins so"
    with pytest.raises(AmbiguousId, match="2 jobs"):
        jobs.full_id(ledger, "0192aaa")
    for missing in ("0192aaaa%", "ORDER_12", "order", "01", "0192aaac"):
        with pytest.raises((JobNotFound, AmbiguousId)):
            jobs.full_id(ledger, missing)


def test_jobs_that_are_not_due_are_found_by_their_queues_the_first_one_first(ledger: Database) -> None:
    sent = [encode(Note(), due_at=NOW + n * HOUR) for n in (3, 1)]
    aside = encode(Import(customer=1), due_at=NOW + HOUR)
    due.schedule(ledger, [*sent, aside])
    retried = message(Note())
    end(ledger, claimed(ledger, retried), Outcome.RETRY, error="E", delay=2 * HOUR)
    claimed(ledger, message(Note()))
    by_time = [sent[1].id, retried.id, sent[0].id]
    assert [row.id for row in jobs.find_waiting(ledger, ["notes"], limit=9)] == by_time
    assert [row.id for row in jobs.find_waiting(ledger, ["notes"], limit=2)] == by_time[:2]
    [row] = jobs.find_waiting(ledger, ["notes"], ids=[sent[0].id, aside.id, "none"], limit=9)
    assert (row.id, row.queue, row.due_at) == (sent[0].id, "notes", NOW + 3 * HOUR)


# Tags and searchable fields.


def test_jobs_are_found_by_tags_and_by_fields_that_their_kind_declares(ledger: Database) -> None:
    first = message(Import(customer=7), tags=("nightly", "batch 4"), sent_at=at(2))
    second = message(Import(customer=7, urgent=True), tags=["nightly"], sent_at=at(1))
    third = message(Import(customer=70))
    for sent in (first, second, third):
        claimed(ledger, sent)
    assert found(ledger, tags=("nightly",)) == [second.id, first.id]
    assert found(ledger, tags=("nightly", "batch 4")) == [first.id]
    assert found(ledger, tags=("Nightly",)) == []
    for kind in ("lists.import", "lists.old"):
        assert found(ledger, kind=kind, fields=(("customer", "7"),)) == [second.id, first.id]
    assert found(ledger, kind="lists.import", fields=(("customer", "7"), ("urgent", "true"))) == [second.id]
    assert [row.tags for row in jobs.find(ledger, JobFilter(tags=("batch 4",)))] == ['["nightly", "batch 4"]']
    assert [len(page.rows) for page in each_page(ledger, JobFilter(tags=("nightly",)), size=1)] == [1, 1]
    for wrong in ({"fields": (("customer", "7"),)}, {"kind": "lists.import", "fields": (("text", "a"),)}):
        with pytest.raises(ValueError, match=r"name it|search"):
            JobFilter(**wrong)  # type: ignore[arg-type]


def test_tags_come_with_a_job_that_waits_first_and_go_with_its_row(ledger: Database) -> None:
    envelope = encode(Import(customer=9), due_at=datetime.now(UTC) + HOUR, tags=("late",))
    due.schedule(ledger, [envelope])
    assert found(ledger, tags=("late",)) == found(ledger, kind="lists.import", fields=(("customer", "9"),))
    assert found(ledger, tags=("late",)) == [envelope.id]
    sent = due.envelope_of(row_of(ledger, envelope.id))
    assert decode(sent).tags == ("late",)
    claimed(ledger, decode(sent))
    assert found(ledger, tags=("late",)) == [envelope.id]
    ledger.write(lambda connection: delete_jobs(connection, ledger, [envelope.id]))
    assert ledger.read(lambda connection: connection.execute(sa.select(job_terms)).all()) == []


def test_an_edited_payload_is_found_by_its_new_value(ledger: Database) -> None:
    sent = message(Import(customer=1), tags=("kept",))
    end(ledger, claimed(ledger, sent), Outcome.DEAD, error="E: x", reason="failed", detail="x")
    replay_one(ledger, sent.id, actor="ada", edit={"customer": 2})
    assert found(ledger, kind="lists.import", fields=(("customer", "1"),)) == []
    assert found(ledger, kind="lists.import", fields=(("customer", "2"),), tags=("kept",)) == [sent.id]


@pytest.fixture
def no_kind_left() -> Iterator[None]:
    yield
    for kind in [kind for kind in registry if kind.name.startswith("lists.wrong")]:
        registry.discard(kind)


@pytest.mark.usefixtures("no_kind_left")
def test_sensitive_fields_are_not_searchable_nor_is_what_is_not_tracked() -> None:
    with pytest.raises(KindError, match="Sensitive"):

        class Login(Job, kind="lists.wrong", search=("password",)):
            password: Sensitive[str]

    with pytest.raises(KindError, match="does not have"):

        class Typo(Job, kind="lists.wrong", search=("custommer",)):
            customer: int

    with pytest.raises(KindError, match="track=False"):

        class Untracked(Job, kind="lists.wrong", track=False, search=("customer",)):
            customer: int


def test_rows_of_a_list_have_no_payload_and_no_result(ledger: Database) -> None:
    claimed(ledger, message(Note(text="secret")))
    [row] = jobs.find(ledger)
    assert {"payload", "result", "embed"}.isdisjoint(row._fields)
    assert ledger.read(lambda connection: connection.execute(sa.select(table.c.payload)).scalar())
