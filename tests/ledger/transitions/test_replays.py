"""Replaying dead letters: which, in what order, and their record afterwards."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from ledger.transitions.dead_jobs import TRACE, bury, die, everything, ids, many, replay
from support.ledgers import (
    Login,
    Note,
    change,
    claimed,
    end,
    letter_of,
    message,
    row_of,
    start_worker,
    stock_envelope,
)

from penstock.config.errors import InvalidState, JobNotFound
from penstock.ledger.queries import dead_letters as deadletters
from penstock.ledger.queries import jobs as queries
from penstock.ledger.queries.dead_letters import Selection
from penstock.ledger.rows import audit
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import dead_letters, jobs
from penstock.ledger.transitions import abandoned
from penstock.ledger.transitions import replay as replays
from penstock.ledger.transitions.bury import bury_message
from penstock.ledger.transitions.cancel import request_cancel
from penstock.ledger.transitions.replay import discard, retry
from penstock.ledger.transitions.replay.plan import BATCH
from penstock.schemas import Outcome, State
from penstock.schemas.wire.codec import Envelope


def test_dead_letters_with_the_same_error_are_a_group(ledger: Database) -> None:
    same = [die(ledger, Note(), f"ValueError: no invoice {number}", TRACE.format("mails")) for number in (7, 81, 9)]
    elsewhere = die(ledger, Note(), "ValueError: no invoice 7", TRACE.format("bills"))
    other = [die(ledger, Login(user="ada"), "KeyError: 'a'"), die(ledger, Login(user="bob"), "KeyError: 'b'")]
    groups = deadletters.groups(ledger)
    assert [(group.count, group.kind, group.reason) for group in groups] == [
        (3, "ledger.note", "failed"),
        (2, "ledger.login", "failed"),
        (1, "ledger.note", "failed"),
    ]
    first = groups[0]
    assert (first.newest_id, first.error) == (same[2], "ValueError: no invoice 9")
    assert first.first_at == letter_of(ledger, same[0]).created_at < first.last_at
    assert ids(ledger, group=first.fingerprint) == same[::-1]
    assert [dead_letter.newest_id for dead_letter in deadletters.groups(ledger, Selection(kind="ledger.login"))] == [
        other[1]
    ]
    assert len(deadletters.groups(ledger, limit=2)) == 2
    replays.replay(ledger, Selection(group=first.fingerprint), actor="ada")
    assert {dead_letter.newest_id for dead_letter in deadletters.groups(ledger)} == {other[1], elsewhere}


def test_groups_are_listed_however_many_there_are(ledger: Database) -> None:
    new = many(ledger, 1100)

    def give_each_a_fingerprint(connection: sa.Connection) -> None:
        letter = sa.update(dead_letters).where(dead_letters.c.id == sa.bindparam("b_id"))
        rows = [{"b_id": job_id, "b_name": job_id[-12:]} for job_id in new]
        ledger.execute_many(connection, letter.values(fingerprint=sa.bindparam("b_name")), rows)

    ledger.write(give_each_a_fingerprint)
    groups = deadletters.groups(ledger, limit=2000)
    assert [group.newest_id for group in groups] == new[::-1]


def test_jobs_abandoned_by_dead_workers_are_a_group_whatever_the_names(ledger: Database) -> None:
    for worker in ("celery@host-1", "dramatiq@other"):
        start_worker(ledger, worker, lease=timedelta(seconds=-1))
        sent = message(Note())
        claimed(ledger, sent, worker=worker)
        change(ledger, sent.id, delivery="at_most_once")
    assert len(abandoned.bury_abandoned(ledger)) == 2
    for expected in ("its worker crashed 3 times on alpha", "its worker crashed 3 times on beta: SIGKILL"):
        end(ledger, claimed(ledger, message(Note())), Outcome.DEAD, error=expected, reason="crashed")
    assert [(dead_letter.count, dead_letter.reason) for dead_letter in deadletters.groups(ledger)] == [(4, "crashed")]


def test_messages_that_could_not_be_read_are_grouped_by_the_reason(ledger: Database) -> None:
    for number in range(2):
        bury(ledger, stock_envelope("who.knows", {"a": number}, queue="celery"), "unknown_kind")
    bury(ledger, stock_envelope("ledger.login", {}, queue="notes"), "invalid_payload")
    bury_message(ledger, Envelope("notes", "normal", {}, b"x"), b"x", "undecodable", "no JSON: column 7")
    largest, *others = deadletters.groups(ledger)
    assert (largest.count, largest.reason, len(others)) == (2, "unknown_kind", 2)


def test_dead_letters_are_chosen_by_key_tenant_time_and_error(ledger: Database) -> None:
    first = die(ledger, Note(), "ValueError: 100% wrong_thing", key="k1", tenant="acme")
    second = die(ledger, Note(), "KeyError: 'a'", key="k2", tenant="acme")
    raw = bury(ledger, stock_envelope("who.knows", {}, queue="celery"), "unknown_kind")
    at = letter_of(ledger, second).created_at
    assert ids(ledger) == [raw, second, first]
    assert ids(ledger, key="k1") == ids(ledger, error="VALUEERROR") == ids(ledger, error="100% wrong_") == [first]
    assert ids(ledger, error="1%wrong") == ids(ledger, key="k1", tenant="else") == []
    assert ids(ledger, tenant="acme") == [second, first]
    assert ids(ledger, since=at) == [raw, second]
    assert ids(ledger, until=at) == [first]
    assert ids(ledger, ids=(first, raw, "none"), queue="celery") == [raw]


def test_a_filter_replays_what_it_chooses_and_nothing_else(ledger: Database) -> None:
    chosen = [die(ledger, Note(), tenant="acme") for _ in range(3)]
    left = die(ledger, Note(), tenant="else")
    verdicts = replays.replay(ledger, Selection(tenant="acme"), actor="ada")
    assert [(verdict.id, verdict.queue, verdict.problem) for verdict in verdicts] == [
        (job_id, "notes", None) for job_id in chosen
    ]
    assert {row_of(ledger, job_id).state for job_id in chosen} == {State.SCHEDULED}
    assert (row_of(ledger, left).state, letter_of(ledger, left).replayed_at) == (State.DEAD, None)
    assert ids(ledger) == [left]
    assert sorted(ids(ledger, decided="replayed")) == chosen
    [line] = audit.find(ledger)
    assert (line.actor, line.act, line.subject_kind, line.subject) == ("ada", "replay", "dead letter", None)
    assert (line.count, line.detail) == (3, {"tenant": "acme"})
    assert audit.find(ledger, subject=chosen[1]) == [line]
    assert audit.find(ledger, subject=left) == []


def test_replaying_nothing_leaves_no_line_in_the_audit_log(ledger: Database) -> None:
    dead_letter_id = die(ledger, Note())
    for nothing in (Selection(kind="no.such"), Selection(ids=()), Selection(ids=(), kind="ledger.note")):
        assert replays.replay(ledger, nothing, actor="ada") == []
        assert discard(ledger, nothing, actor="ada", reason="x") == []
    assert ids(ledger) == [dead_letter_id]
    [verdict] = replay(ledger, "none")
    assert isinstance(verdict.problem, JobNotFound)
    assert audit.find(ledger) == []


def test_replays_go_in_batches_oldest_first_and_leave_a_line_in_the_audit_log(ledger: Database) -> None:
    new = many(ledger, 2 * BATCH + 7)
    verdicts = replays.replay(ledger, Selection(kind="ledger.note"), actor="ada", limit=len(new) - 1)
    assert [verdict.id for verdict in verdicts] == new[:-1]
    assert ids(ledger) == new[-1:]
    counted = queries.counts(ledger, (State.SCHEDULED, State.DEAD))
    assert counted == {"notes": {"scheduled": len(new) - 1, "dead": 1}}
    [line] = audit.find(ledger)
    assert line.count == len(new) - 1
    assert audit.find(ledger, subject=new[0]) == audit.find(ledger, subject=new[-2]) == [line]


def test_throttled_jobs_become_due_one_after_the_other(ledger: Database) -> None:
    new = many(ledger, BATCH + 3)
    request = sa.update(jobs).where(jobs.c.id == new[1]).values(state=State.CANCELLED)
    ledger.write(lambda connection: connection.execute(request))
    before = datetime.now(UTC) - timedelta(seconds=1)
    verdicts = replay(ledger, *new, per_second=4)
    assert isinstance(verdicts[1].problem, InvalidState)
    due = [row_of(ledger, verdict.id).due_at for verdict in verdicts if verdict.problem is None]
    assert due == [verdict.due_at for verdict in verdicts if verdict.problem is None]
    assert before < due[0]
    assert [(time - due[0]).total_seconds() for time in due] == [number / 4 for number in range(len(new) - 1)]
    assert audit.find(ledger)[0].detail == {"per_second": 4}


def test_a_dry_run_says_what_would_happen_and_writes_nothing(ledger: Database) -> None:
    fine, cancelled = die(ledger, Note()), die(ledger, Note())
    change(ledger, cancelled, state=State.CANCELLED)
    bytes_only = bury_message(ledger, Envelope("notes", "normal", {}, b"x"), b"x", "undecodable", "no JSON")
    strange = bury(ledger, stock_envelope("who.knows", {}, queue="celery"), "unknown_kind")
    before = everything(ledger)
    planned = replays.replay(ledger, Selection(), actor="ada", per_second=1, dry_run=True)
    discard(ledger, Selection(), actor="ada", reason="old", dry_run=True)
    assert everything(ledger) == before
    plans = {verdict.id: (verdict.due_at is None, str(verdict.problem or "")) for verdict in planned}
    assert plans[fine] == (False, "")
    assert "is cancelled" in plans[cancelled][1]
    assert "not a message" in plans[bytes_only][1]
    assert "--import" in plans[strange][1]
    verdicts = replays.replay(ledger, Selection(), actor="ada", per_second=1)
    assert [(verdict.id, str(verdict.problem)) for verdict in verdicts] == [
        (verdict.id, str(verdict.problem)) for verdict in planned
    ]


def test_a_decided_dead_letter_is_open_again_when_its_job_dies_again(ledger: Database) -> None:
    dead_letter_id = die(ledger, Note())
    discard(ledger, Selection(ids=(dead_letter_id,)), actor="ada", reason="no")
    retry(ledger, dead_letter_id, actor="ada")
    end(ledger, claimed(ledger, message(Note(), id=dead_letter_id, fence=1)), Outcome.DEAD, error="no", reason="failed")
    assert ids(ledger) == [dead_letter_id]
    assert len(deadletters.show(ledger, dead_letter_id).decisions) == 2


def test_a_dead_letter_whose_job_is_no_longer_dead_is_not_replayed(ledger: Database) -> None:
    retried = die(ledger, Note())
    retry(ledger, retried, actor="ada")
    assert request_cancel(ledger, retried) == State.CANCELLED
    gone = die(ledger, Note())
    ledger.write(lambda connection: connection.execute(sa.delete(jobs).where(jobs.c.id == gone)))
    problems = [str(verdict.problem) for verdict in replay(ledger, retried, gone)]
    assert "replayed already" in problems[0]
    assert "no job" in problems[1]
    assert row_of(ledger, retried).state == State.CANCELLED


def test_concurrent_replays_replay_each_dead_letter_once(ledger: Database, ledger_url: str) -> None:
    new = many(ledger, BATCH + 20)
    results: list[list[replays.ReplayResult]] = []
    errors: list[BaseException] = []
    ready = threading.Barrier(2)

    def run(actor: str, reverse: bool) -> None:
        database = Database(ledger_url)
        try:
            ready.wait(60)
            chosen = Selection(ids=tuple(reversed(new) if reverse else new))
            results.append(replays.replay(database, chosen, actor=actor))
        except BaseException as error:
            errors.append(error)
        finally:
            database.close()

    threads = [threading.Thread(target=run, args=(actor, actor == "bob")) for actor in ("ada", "bob")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    done = [verdict.id for verdicts in results for verdict in verdicts if verdict.problem is None]
    assert sorted(done) == new
    assert sum(line.count for line in audit.find(ledger)) == len(new)


def test_replays_and_discards_need_an_actor(ledger: Database) -> None:
    dead_letter_id = die(ledger, Note())
    before = everything(ledger)
    for act in (
        lambda: replays.replay_one(ledger, dead_letter_id, actor=""),
        lambda: discard(ledger, Selection(), actor=" ", reason="x"),
        lambda: retry(ledger, dead_letter_id, actor=""),
    ):
        with pytest.raises(ValueError, match="actor"):
            act()
    with pytest.raises(ValueError, match="per_second"):
        replay(ledger, dead_letter_id, per_second=0)
    assert everything(ledger) == before
