"""Unique jobs: what each policy does to the second job with a key, on every database."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa
from producers.enqueue.unique_rows import HOUR, rows, run
from support.ledgers import change, claim_one, claimed, end, message, row_of
from support.unique_jobs import Debounce, Ever, Existing, Hourly, Light, Plain, Reject, Replace

from penstock.config.errors import DuplicateJob, InvalidJob
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import jobs, unique_keys
from penstock.ledger.transitions.claim import Refusal
from penstock.producers import JobHandle, Producer
from penstock.producers.senders.memory import MemoryBroker
from penstock.schemas import Job, Outcome, State
from penstock.schemas.wire.codec import decode
from penstock.workers.dispatcher import due_jobs


def test_a_unique_job_is_on_record_and_with_the_broker(
    producer: Producer, sender: MemoryBroker, ledger: Database
) -> None:
    handle = producer.enqueue(Reject(n=1, text="ü"), tenant="acme", priority="high")
    row = row_of(ledger, handle.id)
    assert (row.state, row.key, row.tenant, row.queue) == (State.QUEUED, "uniq.reject:n=1", "acme", "uniq")
    assert (handle.created, [envelope.id for envelope in sender.sent]) == (True, [handle.id])
    run(ledger, sender, handle)
    assert handle.status().state == "succeeded"


def test_reject_raises_with_the_job_that_holds_the_key(producer: Producer, sender: MemoryBroker) -> None:
    first = producer.enqueue(Reject(n=1))
    with pytest.raises(DuplicateJob, match=r"uniq\.reject:n=1") as caught:
        producer.enqueue(Reject(n=1, text="other"))
    assert (caught.value.key, caught.value.existing_id) == ("uniq.reject:n=1", first.id)
    producer.enqueue(Reject(n=2))
    assert len(sender.sent) == 2


def test_existing_answers_with_the_job_that_holds_the_key(producer: Producer, sender: MemoryBroker) -> None:
    first = producer.enqueue(Existing(n=1))
    second = producer.enqueue(Existing(n=1), queue="listed")
    assert (second.id, second.created, second.kind, second.queue) == (first.id, False, "uniq.existing", "uniq")
    assert second.status().state == "queued"
    assert len(sender.sent) == 1


def test_replace_cancels_the_waiting_job_for_the_new_one(
    producer: Producer, sender: MemoryBroker, ledger: Database
) -> None:
    delayed = producer.enqueue(Replace(n=1, text="a"), delay=HOUR)
    queued = producer.enqueue(Replace(n=1, text="b"))
    last = producer.enqueue(Replace(n=1, text="c"))
    assert [handle.created for handle in (delayed, queued, last)] == [True] * 3
    assert [handle.status().state for handle in (delayed, queued, last)] == ["cancelled", "cancelled", "queued"]
    assert last.id in (queued.status().error or "")
    refused = claim_one(ledger, decode(sender.sent[0]))
    assert isinstance(refused, Refusal)
    assert refused.reason == "cancelled"
    run(ledger, sender, last)


def test_replace_leaves_a_running_job_alone_and_replaces_what_waits_behind_it(
    producer: Producer, sender: MemoryBroker, ledger: Database
) -> None:
    running = producer.enqueue(Replace(n=1))
    claim = claimed(ledger, decode(sender.sent[0]))
    waits = producer.enqueue(Replace(n=1))
    last = producer.enqueue(Replace(n=1))
    assert [handle.status().state for handle in (running, waits, last)] == ["running", "cancelled", "queued"]
    assert end(ledger, claim, Outcome.SUCCEEDED)


def test_debounce_keeps_one_job_with_the_last_payload_and_puts_it_off(
    producer: Producer, sender: MemoryBroker, ledger: Database
) -> None:
    first = producer.enqueue(Debounce(n=1, text="first"))
    due = row_of(ledger, first.id).due_at
    assert due > datetime.now(UTC) + 0.9 * HOUR
    handles = [producer.enqueue(Debounce(n=1, text=f"{number}"), tenant=None) for number in range(5)]
    assert {handle.id for handle in handles} == {first.id}
    assert not any(handle.created for handle in handles)
    [row] = rows(ledger)
    assert (json.loads(row.payload)["text"], row.state) == ("4", State.SCHEDULED)
    assert row.due_at > due
    assert sender.sent == []
    # A copy of the first one would come too late, from whatever clock it was sent too early.
    assert isinstance(claim_one(ledger, message(Debounce(n=1, text="first"), id=first.id)), Refusal)
    change(ledger, first.id, due_at=datetime.now(UTC))
    assert due_jobs.send_due(ledger, sender) == 1
    assert decode(sender.sent[0]).job == Debounce(n=1, text="4")
    run(ledger, sender, first)


def test_a_debounced_job_that_is_on_its_way_is_replaced_and_one_that_runs_is_not(
    producer: Producer, sender: MemoryBroker, ledger: Database
) -> None:
    first = producer.enqueue(Debounce(n=1, text="1"))
    change(ledger, first.id, due_at=datetime.now(UTC))
    due_jobs.send_due(ledger, sender)
    second = producer.enqueue(Debounce(n=1, text="2"))
    assert (second.created, first.status().state, second.status().state) == (True, "cancelled", "scheduled")
    change(ledger, second.id, due_at=datetime.now(UTC))
    due_jobs.send_due(ledger, sender)
    claimed(ledger, decode(sender.sent[1]))
    third = producer.enqueue(Debounce(n=1, text="3"))
    assert (third.created, second.status().state, third.status().state) == (True, "running", "scheduled")


def test_a_copy_that_a_dispatcher_is_sending_does_not_run_instead_of_the_debounced_job(
    producer: Producer, ledger: Database
) -> None:
    class During(MemoryBroker):
        def send(self, envelopes: Any) -> None:
            super().send(envelopes)
            if not later:
                later.append(producer.enqueue(Debounce(n=1, text="new")))

    later: list[JobHandle] = []
    broker = During()
    first = producer.enqueue(Debounce(n=1, text="old"))
    change(ledger, first.id, due_at=datetime.now(UTC))
    due_jobs.send_due(ledger, broker)
    change(ledger, later[0].id, due_at=datetime.now(UTC))
    due_jobs.send_due(ledger, broker)
    assert isinstance(claim_one(ledger, decode(broker.sent[0])), Refusal)
    claim = claimed(ledger, decode(broker.sent[1]))
    assert claim.message.job == Debounce(n=1, text="new")


@pytest.mark.parametrize("outcome", [Outcome.SUCCEEDED, Outcome.DISCARDED, Outcome.CANCELLED, Outcome.DEAD])
def test_a_job_that_ended_has_given_its_key_back(
    producer: Producer, sender: MemoryBroker, ledger: Database, outcome: Outcome
) -> None:
    first = producer.enqueue(Reject(n=1))
    run(ledger, sender, first, outcome)
    assert producer.enqueue(Reject(n=1)).id != first.id


def test_a_job_that_retries_snoozes_or_runs_holds_its_key(
    producer: Producer, sender: MemoryBroker, ledger: Database
) -> None:
    producer.enqueue(Reject(n=0))
    claimed(ledger, decode(sender.sent[0]))
    for number, outcome in enumerate((Outcome.RETRY, Outcome.SNOOZED), 1):
        run(ledger, sender, producer.enqueue(Reject(n=number)), outcome)
    for number in range(3):
        with pytest.raises(DuplicateJob):
            producer.enqueue(Reject(n=number))


def test_a_period_holds_the_key_of_a_job_that_succeeded_and_not_of_one_that_failed(
    producer: Producer, sender: MemoryBroker, ledger: Database
) -> None:
    first = producer.enqueue(Hourly(n=1))
    run(ledger, sender, first)
    with pytest.raises(DuplicateJob):
        producer.enqueue(Hourly(n=1))
    # Nor does it help that the record of it is gone.
    ledger.write(lambda connection: connection.execute(sa.delete(jobs).where(jobs.c.id == first.id)))
    with pytest.raises(DuplicateJob):
        producer.enqueue(Hourly(n=1))
    over = sa.update(unique_keys).values(held_until=datetime.now(UTC))
    ledger.write(lambda connection: connection.execute(over))
    second = producer.enqueue(Hourly(n=1))
    run(ledger, sender, second, Outcome.DEAD)
    producer.enqueue(Hourly(n=1))


def test_chosen_states_hold_the_key_and_others_do_not(
    producer: Producer, sender: MemoryBroker, ledger: Database
) -> None:
    first = producer.enqueue(Ever(n=1))
    with pytest.raises(DuplicateJob):
        producer.enqueue(Ever(n=1))
    claim = claimed(ledger, decode(sender.sent[0]))
    second = producer.enqueue(Ever(n=1))  # the first one runs
    end(ledger, claim, Outcome.SUCCEEDED)
    run(ledger, sender, second)
    with pytest.raises(DuplicateJob) as caught:
        producer.enqueue(Ever(n=1))
    assert caught.value.existing_id == second.id != first.id


def test_keys_differ_by_kind_tenant_and_case(producer: Producer) -> None:
    handles = [
        producer.enqueue(Plain(), key="k", unique="reject"),
        producer.enqueue(Plain(), key="k", unique="reject", tenant="acme"),
        producer.enqueue(Plain(), key="k", unique="reject", tenant="Acme"),
        producer.enqueue(Plain(), key="K", unique="reject"),
        producer.enqueue(Plain(), key="k ", unique="reject"),
        producer.enqueue(Reject(n=1), key="k"),
    ]
    assert len({handle.id for handle in handles}) == 6


def test_a_policy_for_one_call_takes_the_place_of_the_kinds(producer: Producer) -> None:
    first = producer.enqueue(Reject(n=1))
    assert producer.enqueue(Reject(n=1), unique="existing").id == first.id
    assert producer.enqueue(Reject(n=1), unique="replace").created
    assert first.status().state == "cancelled"
    soon = producer.enqueue(Plain(), key="p", unique="debounce", debounce=60)
    assert producer.enqueue(Plain(text="x"), key="p", unique="debounce", debounce=60).id == soon.id
    assert producer.enqueue(Plain(), key="p").created  # no policy: the key only names it


@pytest.mark.parametrize(
    ("job", "options", "expected"),
    [
        (Plain(), {"unique": "reject"}, "needs a key"),
        (Plain(), {"unique": "often", "key": "k"}, "reject, existing"),
        (Plain(), {"unique": "debounce", "key": "k"}, "quiet period"),
        (Plain(), {"unique_for": 60, "key": "k"}, "needs a policy"),
        (Light(), {"unique": "reject", "key": "k"}, "track=False"),
        (Debounce(n=1), {"delay": 60}, "quiet period"),
        (Debounce(n=1), {"run_at": datetime.now(UTC) + HOUR}, "quiet period"),
        (Debounce(n=1), {"expires_in": 60}, "expires"),
        (Plain(), {"unique": "reject", "key": "k" * 300}, "255"),
        (Plain(), {"unique": "reject", "key": "k\0"}, "NUL"),
    ],
)
def test_a_job_that_cannot_be_unique_is_refused_at_once(
    producer: Producer, sender: MemoryBroker, ledger: Database, job: Job, options: dict[str, Any], expected: str
) -> None:
    with pytest.raises(InvalidJob, match=expected):
        producer.enqueue(job, **options)
    assert (sender.sent, rows(ledger)) == ([], [])


def test_a_call_repeated_with_its_id_is_one_job(producer: Producer, sender: MemoryBroker) -> None:
    first, again = [producer.enqueue(Reject(n=1), id="order-1") for _ in range(2)]
    assert (first.id, first.created, again.id, again.created) == ("order-1", True, "order-1", False)
    assert len(sender.sent) == 1


def test_enqueue_many_decides_in_order_and_answers_each_job(
    producer: Producer, sender: MemoryBroker, ledger: Database
) -> None:
    held = producer.enqueue(Existing(n=0))
    handles = producer.enqueue_many([Existing(n=0), Existing(n=1), Plain(text="x"), Existing(n=1), Replace(n=1)])
    assert [handle.created for handle in handles] == [False, True, True, False, True]
    assert (handles[0].id, handles[3].id) == (held.id, handles[1].id)
    assert [envelope.id for envelope in sender.sent[1:]] == [handles[number].id for number in (1, 2, 4)]
    replaced = producer.enqueue_many([Replace(n=2, text=str(number)) for number in range(3)])
    assert [handle.status().state for handle in replaced] == ["cancelled", "cancelled", "queued"]
    assert [envelope.id for envelope in sender.sent[4:]] == [replaced[2].id]
    debounced = producer.enqueue_many([Debounce(n=2, text=str(number)) for number in range(3)])
    assert [handle.created for handle in debounced] == [True, False, False]
    assert json.loads(row_of(ledger, debounced[0].id).payload)["text"] == "2"


def test_enqueue_many_sends_nothing_if_a_job_is_refused(
    producer: Producer, sender: MemoryBroker, ledger: Database
) -> None:
    producer.enqueue(Reject(n=5))
    with pytest.raises(DuplicateJob) as caught:
        producer.enqueue_many([Plain(), Replace(n=1), Reject(n=4), Reject(n=5)])
    assert "number 3" in caught.value.__notes__[0]
    assert (len(sender.sent), len(rows(ledger))) == (1, 1)
    producer.enqueue_many([Reject(n=4)])
