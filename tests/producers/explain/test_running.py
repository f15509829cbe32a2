"""Where a job runs, died or ended."""

from __future__ import annotations

import socket
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from producers.explain.members import HOUR, MINUTE, At, Empty, dispatcher, worker
from support.ledgers import LEASE, Note, Pay, Ring, change, claimed, end, message

from penstock.ledger.members import heartbeats
from penstock.ledger.members.heartbeats import record_worker_exit
from penstock.ledger.queries import dead_letters
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import workers
from penstock.ledger.transitions import lost as resending
from penstock.ledger.transitions.bury import bury_message
from penstock.ledger.transitions.cancel import request_cancel
from penstock.ledger.transitions.replay import discard
from penstock.producers import Producer
from penstock.producers.explain import explain
from penstock.producers.explain.queue_position import QueuePosition
from penstock.producers.senders.memory import MemoryBroker
from penstock.schemas import Job, Outcome, State
from penstock.schemas.wire.codec import Envelope


class Timed(Job, kind="explain.timed", queue="notes", timeout=60): ...


def test_a_running_job_says_where_and_how_far_it_is(ledger: Database) -> None:
    worker(ledger)
    timed = message(Timed())
    claimed(ledger, timed)
    heartbeats.beat(ledger, "w1", lease=HOUR)
    heartbeats.report(ledger, "w1", progress={timed.id: (3, 10, "pages")})
    explanation = explain(ledger, timed.id)
    assert "it runs since" in explanation.because
    assert f"on worker w1 (host {socket.gethostname()}, pid " in explanation.because
    assert "attempt 1, 3 of 10 done (pages); its deadline is" in explanation.because
    assert explanation.facts["progress"] == {"done": 3, "total": 10, "note": "pages"}
    assert explanation.facts["deadline"] == explanation.facts["started_at"] + MINUTE
    request_cancel(ledger, timed.id)
    assert "it was asked to stop" in explain(ledger, timed.id).because
    late = message(Timed())
    claimed(ledger, late)
    change(ledger, late.id, started_at=datetime.now(UTC) - HOUR)
    overdue = explain(ledger, late.id)
    assert "its deadline has passed" in overdue.because
    assert "penstock jobs cancel" in str(overdue.advice)


def test_a_job_that_runs_apart_after_a_crash_says_so(ledger: Database) -> None:
    worker(ledger)
    sent = message(Note())
    claimed(ledger, sent)
    change(ledger, sent.id, crashes=1)
    assert "attempt 1, in a process of its own after a crash" in explain(ledger, sent.id).because
    change(ledger, sent.id, crashes=2)
    assert "in a process of its own after 2 crashes" in explain(ledger, sent.id).because


def dead_worker(ledger: Database, job: Job) -> str:
    """A job under a worker whose lease ended ten seconds ago."""
    worker(ledger, "dead")
    lost = message(job)
    claimed(ledger, lost, worker="dead")
    record_worker_exit(ledger, pid_of(ledger, "dead"), "SIGKILL", None)
    over = sa.update(workers).where(workers.c.name == "dead").values(lease_until=resending.clock(ledger) - LEASE / 1.5)
    ledger.write(lambda connection: connection.execute(over))
    return lost.id


def pid_of(ledger: Database, name: str) -> int:
    pid = sa.select(workers.c.pid).where(workers.c.name == name)
    return int(ledger.read(lambda connection: connection.execute(pid).scalar_one()))


def test_a_job_whose_worker_died_says_when_it_is_taken_over(ledger: Database) -> None:
    job_id = dead_worker(ledger, Note())
    alone = explain(ledger, job_id)
    assert "worker dead, which began attempt 1, is dead or silent (SIGKILL): its lease ended" in alone.because
    assert "but no live worker consumes queue 'notes'" in alone.because
    worker(ledger)
    dispatcher(ledger)
    held = At(QueuePosition(True, 0, held_by="dead", silent=timedelta(seconds=10)))
    before = resending.clock(ledger)
    explanation = explain(ledger, job_id, held)
    assert "another worker takes it over by" in explanation.because
    assert explanation.facts["taken_over_at"] >= before + timedelta(seconds=10)
    assert explanation.facts["ended"] == "SIGKILL"
    takeover = explain(ledger, job_id, At(QueuePosition(True, 0, held_by="w1", silent=timedelta())))
    assert "worker w1 has taken it over" in takeover.because
    lost = explain(ledger, job_id, Empty())
    assert "the broker does not have it, so a dispatcher sends it again" in lost.because
    assert lost.facts["resent_at"] == lost.facts["lease_until"] + 4 * LEASE


def test_a_job_that_must_not_run_twice_says_when_it_is_a_dead_letter(ledger: Database) -> None:
    job_id = dead_worker(ledger, Ring(number="1"))
    explanation = explain(ledger, job_id)
    assert "a dispatcher makes it a dead letter" in explanation.because
    assert "but no dispatcher lives" in explanation.because
    assert explanation.facts["buried_at"] == explanation.facts["lease_until"] + 4 * LEASE
    dispatcher(ledger)
    assert explain(ledger, job_id).advice is None


def test_a_dead_job_says_why_and_how_to_replay_it(ledger: Database) -> None:
    note = message(Note())
    fields = {"error": "ValueError: no", "reason": "failed", "detail": "ValueError: no (8 attempts)"}
    end(ledger, claimed(ledger, note), Outcome.DEAD, **fields)
    explanation = explain(ledger, note.id)
    assert "failed: ValueError: no (8 attempts)" in explanation.because
    assert f"penstock deadletters replay {note.id}" in str(explanation.advice)
    assert f"--group {explanation.facts['fingerprint']}" in str(explanation.advice)
    discard(ledger, dead_letters.Selection(ids=(note.id,)), actor="ada", reason="gone")
    assert "its letter was discarded" in explain(ledger, note.id).because


def test_a_job_that_is_in_doubt_says_where_to_decide(ledger: Database) -> None:
    pay = message(Pay(amount=1))
    end(ledger, claimed(ledger, pay), Outcome.DEAD, error="in doubt", reason="in_doubt")
    assert f"penstock jobs effects {pay.id} --confirm KEY" in str(explain(ledger, pay.id).advice)


def test_a_message_that_never_became_a_job_is_explained_by_its_dead_letter(ledger: Database) -> None:
    envelope = Envelope("notes", "normal", {"id": "m-1"}, b"rubbish")
    bury_message(ledger, envelope, b"rubbish", "undecodable", "no body")
    explanation = explain(ledger, "m-1")
    assert explanation.state == State.DEAD
    assert "undecodable: no body" in explanation.because
    assert "penstock deadletters replay m-1" in str(explanation.advice)


@pytest.mark.parametrize(
    ("outcome", "expected", "advised"),
    [
        (Outcome.SUCCEEDED, "it succeeded", "--force"),
        (Outcome.DISCARDED, "it was discarded", "penstock jobs retry"),
        (Outcome.CANCELLED, "it was cancelled", "penstock jobs retry"),
    ],
)
def test_an_ended_job_says_when(ledger: Database, outcome: Outcome, expected: str, advised: str) -> None:
    pay = message(Pay(amount=1))
    end(ledger, claimed(ledger, pay), outcome)
    explanation = explain(ledger, pay.id)
    assert expected in explanation.because
    assert f"{explanation.facts['finished_at']:%H:%M:%SZ}" in explanation.because
    assert advised in str(explanation.advice)
    assert explanation.facts["worker"] == "w1"


def test_a_job_cancelled_before_it_was_seen_and_one_that_was_replaced(ledger: Database, ledger_url: str) -> None:
    request_cancel(ledger, "unseen-1", kind="ledger.note")
    unseen = explain(ledger, "unseen-1")
    assert "before a worker saw it" in unseen.because
    assert "penstock audit list --subject unseen-1" in str(unseen.advice)
    with Producer("redis://unused", sender=MemoryBroker(), database_url=ledger_url) as producer:
        first, second = [producer.enqueue(Note(), key="k", unique="replace") for _ in range(2)]
    assert f"it was cancelled {datetime.now(UTC):%Y}" in explain(ledger, first.id).because
    assert f"(replaced by job {second.id})" in explain(ledger, first.id).because
