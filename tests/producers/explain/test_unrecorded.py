"""Jobs that wait for a key, in a broker without a record, or in an outbox."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa
from producers.explain.members import HOUR, MINUTE, Empty, dispatcher, worker
from support.ledgers import Note, change, message

from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import jobs, outbox, unique_keys
from penstock.ledger.transitions.cancel import request_cancel
from penstock.producers import Producer
from penstock.producers.explain import Explanation, explain, explain_key
from penstock.producers.explain.queue_position import MemoryPositions
from penstock.producers.outbox import Outbox
from penstock.producers.senders.memory import MemoryBroker
from penstock.schemas import Job, State
from penstock.schemas.wire.codec import encode


class Only(Job, kind="explain.only", queue="notes", unique_by=("n",), unique="reject"):
    n: int


class Hourly(Job, kind="explain.hourly", queue="notes", unique_by=("n",), unique="existing", unique_for=3600):
    n: int


@pytest.fixture
def holding(ledger: Database, ledger_url: str) -> Callable[[Job], str]:
    def hold(job: Job) -> str:
        with Producer("redis://unused", sender=MemoryBroker(), database_url=ledger_url) as producer:
            return producer.enqueue(job).id

    return hold


def only_of(explanations: list[Explanation]) -> Explanation:
    [reason] = explanations
    return reason


def test_a_key_that_is_held_says_by_which_job_and_why_that_has_not_ended(
    ledger: Database, holding: Callable[[Job], str]
) -> None:
    worker(ledger)
    job_id = holding(Only(n=7))
    explanation = only_of(explain_key(ledger, "explain.only:n=7"))
    assert explanation.job_id == job_id
    assert explanation.because.startswith(
        "key 'explain.only:n=7' of explain.only is held by this job: it waits in queue"
    )
    assert f"penstock jobs cancel {job_id}" in str(explanation.advice)
    request_cancel(ledger, job_id)
    free = only_of(explain_key(ledger, "explain.only:n=7", kind="explain.only"))
    assert "is free; it was held by this job: it was cancelled" in free.because
    assert explain_key(ledger, "explain.only:n=7", kind="explain.hourly") == []
    assert explain_key(ledger, "explain.only:n=7", tenant="acme") == []
    assert explain_key(ledger, "EXPLAIN.only:n=7") == []


def test_a_key_that_is_held_for_a_period_is_held_by_what_succeeded(
    ledger: Database, holding: Callable[[Job], str]
) -> None:
    job_id = holding(Hourly(n=1))
    change(ledger, job_id, state=State.SUCCEEDED, finished_at=datetime.now(UTC))
    explanation = only_of(explain_key(ledger, "explain.hourly:n=1"))
    assert "is held by this job: it succeeded" in explanation.because
    assert explanation.facts["holds_key_until"] > datetime.now(UTC)
    ledger.write(lambda connection: connection.execute(sa.delete(jobs)))
    assert "is held by this job: the ledger has no record" in only_of(explain_key(ledger, "explain.hourly:n=1")).because
    over = sa.update(unique_keys).values(held_until=datetime.now(UTC) - MINUTE)
    ledger.write(lambda connection: connection.execute(over))
    assert "is free" in only_of(explain_key(ledger, "explain.hourly:n=1")).because


def test_a_job_without_a_record_may_wait_in_the_broker_or_be_gone(ledger: Database) -> None:
    broker = MemoryBroker()
    positions = MemoryPositions(broker)
    job_id = message(Note()).id
    explanation = explain(ledger, job_id, positions, queues=["notes"])
    assert explanation.state is None
    assert "the ledger has no record of it, its id was made" in explanation.because
    assert "either it waits in the broker, unseen by any worker, or it never came" in explanation.because
    assert "penstock queues list" in str(explanation.advice)
    sure = explain(ledger, job_id, Empty(), queues=["notes"])
    assert "nor has the broker (queues dispatcher, notes)" in sure.because
    assert "its id" not in explain(ledger, "order-1").because


def test_a_job_that_no_worker_has_seen_is_found_in_the_broker(ledger: Database) -> None:
    broker = MemoryBroker()
    positions = MemoryPositions(broker)
    first, second = encode(Note()), encode(Note())
    broker.send([first, second])
    unserved = explain(ledger, second.id, positions, queues=["notes"])
    assert unserved.because == "no live worker consumes queue 'notes'; it waits in queue 'notes' at position 2"
    assert "--queues notes" in str(unserved.advice)
    worker(ledger)
    explanation = explain(ledger, second.id, positions)
    assert "at position 2 (1 live worker)" in explanation.because
    assert (explanation.facts["queue"], explanation.facts["position"]) == ("notes", 2)


def test_a_job_in_the_outbox(ledger: Database) -> None:
    def enqueue_three(connection: sa.Connection) -> list[str]:
        first = [Outbox().enqueue(connection, Note(), key="k"), Outbox().enqueue(connection, Note())]
        return [handle.id for handle in (*first, Outbox().enqueue(connection, Note(), key="k"))]

    first, _, last = ledger.write(enqueue_three)
    explanation = explain(ledger, last)
    assert explanation.because.startswith("it waits in the outbox, written 20")
    assert "no dispatcher lives to send it (none was ever seen)" in explanation.because
    assert "penstock dispatcher" in str(explanation.advice)
    dispatcher(ledger)
    explanation = explain(ledger, last)
    assert explanation.because.endswith(", behind 1 of its key, whose order is kept")
    assert "the dispatcher's log says so" in str(explanation.advice)
    assert (explanation.state, explanation.facts["kind"], explanation.facts["queue"], explanation.facts["key"]) == (
        None,
        "ledger.note",
        "notes",
        "k",
    )
    take_over = sa.update(outbox).where(outbox.c.id == first).values(taken_until=datetime.now(UTC) + MINUTE)
    ledger.write(lambda connection: connection.execute(take_over))
    explanation = explain(ledger, first)
    assert (explanation.because.split("; ")[1], explanation.advice) == ("a dispatcher is sending it", None)


def test_a_delayed_job_on_its_way_to_the_ledger(ledger: Database) -> None:
    broker = MemoryBroker()
    envelope = encode(Note(), due_at=datetime.now(UTC) + HOUR)
    assert envelope.queue == "dispatcher"
    broker.send([envelope])
    explanation = explain(ledger, envelope.id, MemoryPositions(broker))
    assert "on its way to the ledger, through the dispatcher's queue; no dispatcher lives" in explanation.because
    dispatcher(ledger)
    assert explain(ledger, envelope.id, MemoryPositions(broker)).advice is None
