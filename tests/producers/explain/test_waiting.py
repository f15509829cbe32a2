"""Why a job that waits does not run: delays, retries, its queue, its broker."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from producers.explain.members import HOUR, MINUTE, At, Empty, dispatcher, worker
from support.ledgers import LEASE, Login, Note, change, claimed, end, message

from penstock.ledger.members import heartbeats
from penstock.ledger.sql.database import Database
from penstock.ledger.transitions import due
from penstock.ledger.transitions import lost as resending
from penstock.producers import Producer
from penstock.producers.explain import explain, waiting
from penstock.producers.explain.queue_position import MemoryPositions, QueuePosition
from penstock.producers.senders.memory import MemoryBroker
from penstock.schemas import Job, Outcome, State
from penstock.schemas.wire.codec import Message, decode, encode
from penstock.workers.dispatcher import due_jobs


class Quiet(Job, kind="explain.quiet", queue="notes", unique_by=("page",), unique="debounce", debounce=600):
    page: str


def delayed(ledger: Database, job: Job | None = None, delay: timedelta = HOUR, **options: Any) -> str:
    envelope = encode(job or Note(), due_at=resending.clock(ledger) + delay, **options)
    due.schedule(ledger, [envelope])
    return str(envelope.id)


def sent(ledger: Database, job: Job | None = None, broker: MemoryBroker | None = None, **options: Any) -> Message:
    """A job that a dispatcher has sent to the broker."""
    broker = broker or MemoryBroker()
    delayed(ledger, job, -MINUTE, **options)
    due_jobs.send_due(ledger, broker)
    return decode(broker.sent[-1])


def test_a_delayed_job_waits_for_its_time_and_its_dispatcher_is_named(ledger: Database) -> None:
    worker(ledger)
    dispatcher(ledger)
    job_id = delayed(ledger, Login(user="ada", password="s3cret"))
    explanation = explain(ledger, job_id)
    assert (explanation.job_id, explanation.state, explanation.advice) == (job_id, State.SCHEDULED, None)
    assert "it waits for its time" in explanation.because
    assert "(in 59 min)" in explanation.because
    assert "dispatcher d1 sends it then" in explanation.because
    assert explanation.facts["due_at"] > datetime.now(UTC)
    assert explanation.facts["kind"] == "ledger.login"
    assert "s3cret" not in str(explanation)
    assert "ada" not in str(explanation)


@pytest.mark.parametrize("gone", ["never", "dead", "stopped"])
def test_a_delayed_job_without_a_dispatcher_says_so(ledger: Database, gone: str) -> None:
    worker(ledger)
    if gone != "never":
        dispatcher(ledger, lease=-HOUR if gone == "dead" else HOUR)
    if gone == "stopped":
        heartbeats.sign_off(ledger, "d1")
    explanation = explain(ledger, delayed(ledger))
    assert "no dispatcher lives to send it" in explanation.because
    expected = {
        "never": "none was ever seen",
        "dead": "d1, was last seen",
        "stopped": "d1, stopped",
    }
    assert expected[gone] in explanation.because
    assert "penstock dispatcher" in str(explanation.advice)


def test_a_delayed_job_without_a_worker_for_it(ledger: Database) -> None:
    dispatcher(ledger)
    explanation = explain(ledger, delayed(ledger))
    assert "no live worker consumes queue 'notes'" in explanation.because
    assert "--queues notes" in str(explanation.advice)


def test_a_due_job_that_is_not_sent_says_how_many_go_first_and_where_to_look(
    ledger: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "_LATE", HOUR / 2)
    worker(ledger)
    dispatcher(ledger)
    for number in range(3):
        delayed(ledger, delay=-HOUR - number * MINUTE)
    soon = explain(ledger, delayed(ledger, delay=-MINUTE))
    assert "its time has come" in soon.because
    assert "dispatcher d1 is about to send it" in soon.because
    late = explain(ledger, delayed(ledger, delay=-50 * MINUTE))
    assert "dispatcher d1 lives and has not sent it; 3 are due before it" in late.because
    assert late.facts["due_before_it"] == 3
    assert "log" in str(late.advice)


def test_a_job_that_expires_before_its_time(ledger: Database) -> None:
    worker(ledger)
    dispatcher(ledger)
    job_id = delayed(ledger)
    change(ledger, job_id, expires_at=datetime.now(UTC) + MINUTE)
    assert "will then be discarded" in explain(ledger, job_id).because


def test_a_retry_says_until_when_and_after_which_error(ledger: Database) -> None:
    worker(ledger)
    dispatcher(ledger)
    note = message(Note())
    end(ledger, claimed(ledger, note), Outcome.RETRY, error="OSError: no route", due_at=datetime.now(UTC) + HOUR)
    explanation = explain(ledger, note.id)
    assert explanation.state == State.RETRYING
    assert "attempt 1 failed (OSError: no route); the next one is in retry until" in explanation.because
    assert (explanation.facts["failures"], explanation.facts["max_attempts"]) == (1, Note.kind().retry.max_attempts)


def test_a_snoozed_job_says_until_when(ledger: Database) -> None:
    dispatcher(ledger)
    note = message(Note())
    snoozed = {"error": "not yet there", "due_at": datetime.now(UTC) + HOUR}
    end(ledger, claimed(ledger, note), Outcome.SNOOZED, **snoozed)
    assert "its handler has snoozed it (not yet there) until" in explain(ledger, note.id).because


def test_a_debounced_job_says_that_it_is_put_off(ledger: Database, ledger_url: str) -> None:
    dispatcher(ledger)
    with Producer("redis://unused", sender=MemoryBroker(), database_url=ledger_url) as producer:
        handle = producer.enqueue(Quiet(page="1"))
    explanation = explain(ledger, handle.id)
    assert "it is debounced until" in explanation.because
    assert explanation.facts["holds_key_until"] == "it ends"


def test_a_job_in_its_queue_says_at_which_position(ledger: Database) -> None:
    worker(ledger)
    worker(ledger, "w2")
    broker = MemoryBroker()
    first, second = sent(ledger, broker=broker), sent(ledger, broker=broker)
    high = sent(ledger, broker=broker, priority="high")
    explanation = explain(ledger, second.id, MemoryPositions(broker))
    assert explanation.because == "it waits in queue 'notes' at position 3 (2 live workers)"
    assert (explanation.facts["position"], explanation.facts["waiting_in_queue"], explanation.advice) == (3, 3, None)
    assert sorted(explanation.facts["workers"]) == ["w1", "w2"]
    assert explain(ledger, high.id, MemoryPositions(broker)).facts["position"] == 1
    assert explain(ledger, first.id, MemoryPositions(broker)).facts["position"] == 2
    assert "its position is unknown" in explain(ledger, first.id).because


def test_an_unavailable_broker_is_a_fact_and_the_rest_is_explained(ledger: Database) -> None:
    worker(ledger)
    broker = MemoryBroker()
    job = sent(ledger, broker=broker)
    broker.down = True
    explanation = explain(ledger, job.id, MemoryPositions(broker))
    assert "it waits in queue 'notes'" in explanation.because
    assert "is down" in explanation.facts["broker"]


def test_a_queue_that_no_worker_consumes_and_who_consumes_what(ledger: Database) -> None:
    job = sent(ledger)
    unconsumed = explain(ledger, job.id)
    assert "no live worker consumes queue 'notes' (no worker lives; none was ever seen)" in unconsumed.because
    worker(ledger, "other", queues=("ticks", "uploads"))
    worker(ledger, "note-taker", queues=("notes.taken", "not_es"))
    worker(ledger, "gone", queues=("notes", "a"), lease=-HOUR)
    dispatcher(ledger)
    explanation = explain(ledger, job.id)
    assert "those that live consume not_es, notes.taken, ticks, uploads" in explanation.because
    assert "the last one, gone, was last seen" in explanation.because
    assert explanation.facts["workers"]["other"] == ["ticks", "uploads"]
    assert explanation.facts["last_worker"] == "gone"
    assert explanation.advice == "start one: penstock worker --queues notes --import …"
    worker(ledger)
    assert "no live worker" not in explain(ledger, job.id).because


def test_a_kind_that_no_live_worker_of_its_queue_handles(ledger: Database) -> None:
    worker(ledger, "w1", kinds=("ledger.pay",))
    worker(ledger, "elsewhere", queues=("ticks",))
    job = sent(ledger)
    explanation = explain(ledger, job.id)
    assert "no live worker of queue 'notes' has a handler for ledger.note (there are 1)" in explanation.because
    assert explanation.facts["without_handler"] == ["w1"]
    assert "--import" in str(explanation.advice)
    worker(ledger, "w2")
    some = explain(ledger, job.id)
    assert "it waits in queue" in some.because
    assert "1 of 2 workers of its queue have no handler" in str(some.advice)


def test_a_job_that_a_busy_worker_has_fetched(ledger: Database) -> None:
    worker(ledger)
    explanation = explain(ledger, sent(ledger).id, At(QueuePosition(True, 0, held_by="w1", silent=timedelta())))
    assert "worker w1 has fetched it" in explanation.because


def test_a_job_that_the_broker_has_lost_says_who_sends_it_again_and_when(ledger: Database) -> None:
    job = sent(ledger)
    assert "no dispatcher lives to send it again" in explain(ledger, job.id, Empty()).because
    dispatcher(ledger)
    unserved = explain(ledger, job.id, Empty())
    assert "once a worker runs its queue: no live worker consumes queue 'notes'" in unserved.because
    worker(ledger)
    explanation = explain(ledger, job.id, Empty())
    assert "the broker does not have it; dispatcher d1 sends it again, from" in explanation.because
    assert explanation.facts["resent_from"] == explanation.facts["sent_at"] + 2 * LEASE
    change(ledger, job.id, expires_at=datetime.now(UTC) - MINUTE)
    assert "it has expired" in explain(ledger, job.id, Empty()).because


def test_a_job_that_changes_while_the_broker_is_asked_is_explained_again(ledger: Database) -> None:
    worker(ledger)
    job = sent(ledger)

    class Meanwhile(Empty):
        def find(self, job_id: str, queue: str, priority: str) -> QueuePosition:
            claimed(ledger, job)
            return super().find(job_id, queue, priority)

    explanation = explain(ledger, job.id, Meanwhile())
    assert explanation.state == State.RUNNING
    assert "it runs since" in explanation.because
