from __future__ import annotations

import json
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from support.ledgers import (
    Login,
    Note,
    Pay,
    Ring,
    Tick,
    attempts_of,
    change,
    claimed,
    end,
    message,
    row_of,
    start_worker,
    stock_envelope,
)

from penstock.config.errors import BrokerUnavailable, UndecodableMessage
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import held_jobs
from penstock.ledger.transitions import due as delays
from penstock.ledger.transitions.cancel import cancel_key, request_cancel
from penstock.ledger.transitions.lost import clock
from penstock.producers.senders.memory import MemoryBroker
from penstock.schemas import Job, Outcome, State
from penstock.schemas.wire.codec import Envelope, Message, decode, encode
from penstock.workers.dispatcher import due_jobs

HOUR = timedelta(hours=1)


def sent_by(broker: MemoryBroker) -> list[Envelope]:
    return [envelope for lane in broker.lanes.values() for envelope, _ in lane]


def test_a_delayed_job_waits_in_the_ledger_and_is_sent_when_due(ledger: Database) -> None:
    broker, now = MemoryBroker(), datetime.now(UTC)
    envelope = encode(
        Note(text="später"), due_at=now + HOUR, key="k", tenant="t", priority="low", expires_at=now + HOUR
    )
    delays.schedule(ledger, [envelope])
    row = row_of(ledger, envelope.id)
    assert (row.state, row.queue, row.due_at) == (State.SCHEDULED, "notes", now + HOUR)
    assert due_jobs.send_due(ledger, broker) == 0
    change(ledger, envelope.id, due_at=now)
    assert due_jobs.send_due(ledger, broker) == 1
    row = row_of(ledger, envelope.id)
    assert row.state == State.QUEUED
    assert now <= row.due_at, "and when it was sent"
    [out] = sent_by(broker)
    assert (out.queue, out.priority) == ("notes", "low")
    read = decode(out)
    assert read.due_at is None
    assert (read.id, read.job, read.key, read.tenant) == (envelope.id, Note(text="später"), "k", "t")
    assert (read.sent_at, read.expires_at, read.attempt, read.fence) == (row.enqueued_at, now + HOUR, 1, 0)


def test_a_retry_is_sent_with_its_number_and_fence(ledger: Database) -> None:
    broker, sent = MemoryBroker(), message(Note())
    end(ledger, claimed(ledger, sent), Outcome.RETRY, due_at=datetime.now(UTC))
    assert due_jobs.send_due(ledger, broker) == 1
    read = decode(sent_by(broker)[0])
    assert (read.id, read.attempt, read.fence) == (sent.id, 2, 1)
    assert claimed(ledger, read).attempt == 2


def test_a_kind_unknown_here_is_sent_as_it_came(ledger: Database) -> None:
    broker = MemoryBroker()
    body = b'[[], {"a": [1, 2.5, null]}, {"callbacks": null, "chain": [{"task": "next"}], "chord": null}]'
    ours = {"version": 3, "due_at": "2020-01-01T00:00:00", "queue": "elsewhere", "priority": "high"}
    delays.schedule(ledger, [Envelope("dispatcher", "high", {"task": "not.here", "id": "x1", "penstock": ours}, body)])
    assert due_jobs.send_due(ledger, broker) == 1
    [out] = sent_by(broker)
    assert (out.queue, out.priority, out.headers["penstock"]["version"]) == ("elsewhere", "high", 3)
    assert json.loads(out.body) == json.loads(body)


def test_scheduling_twice_keeps_the_first(ledger: Database) -> None:
    envelope = encode(Note(), due_at=datetime.now(UTC) + HOUR)
    delays.schedule(ledger, [envelope])
    request_cancel(ledger, envelope.id)
    delays.schedule(ledger, [envelope, encode(Note(), due_at=datetime.now(UTC))])
    assert row_of(ledger, envelope.id).state == State.CANCELLED


def test_a_stock_clients_eta_and_positional_arguments_are_understood() -> None:
    eta = "2031-05-06T07:08:09+02:00"
    row = delays.waiting(stock_envelope("ledger.login", {"password": "x"}, queue="notes", args=("ada",), eta=eta))
    assert row["due_at"] == datetime(2031, 5, 6, 5, 8, 9, tzinfo=UTC)
    assert (json.loads(row["payload"]), row["version"]) == ({"user": "ada", "password": "x"}, Login.kind().version)


@pytest.mark.parametrize(
    "envelope",
    [
        Envelope("dispatcher", "normal", {}, b"garbage"),
        Envelope("dispatcher", "normal", {"id": "x", "task": "k"}, b"[]"),
        Envelope("dispatcher", "normal", {"id": "x", "task": "k", "penstock": []}, b"[[1], {}, null]"),
        Envelope("dispatcher", "normal", {"id": "x", "task": "k", "penstock": {"queue": 7}}, b"[[], {}, null]"),
        Envelope("q", "normal", {"id": "x" * 129, "task": "k"}, b"[[], {}, null]"),
        Envelope("q", "normal", {"id": "x\0", "task": "k"}, b"[[], {}, null]"),
        Envelope("q", "normal", {"id": "x", "task": "k", "penstock": {"key": "\ud800"}}, b"[[], {}, null]"),
        Envelope("q", "normal", {"id": "x", "task": "k", "penstock": {"tenant": "t" * 256}}, b"[[], {}, null]"),
        Envelope("q", "normal", {"id": "x", "task": "k", "penstock": {"version": 2**40}}, b"[[], {}, null]"),
        Envelope("q", "normal", {"id": "x", "task": "k", "penstock": {"version": True}}, b"[[], {}, null]"),
        Envelope("q", "normal", {"id": "x", "task": "k", "penstock": {"queue": "q q"}}, b"[[], {}, null]"),
        Envelope("q", "normal", {"id": "x", "task": "k", "penstock": {"queue": "dispatcher"}}, b"[[], {}, null]"),
        Envelope("q", "normal", {"id": "x", "task": "k", "eta": "tomorrow"}, b"[[], {}, null]"),
        Envelope("q", "normal", {"id": "x", "task": "k", "eta": "0001-01-01T00:00:00+14:00"}, b"[[], {}, null]"),
    ],
)
def test_a_message_that_would_spoil_a_batch_is_refused_alone(envelope: Envelope) -> None:
    with pytest.raises(UndecodableMessage):
        delays.waiting(envelope)


def test_jobs_stay_due_while_the_broker_is_unavailable(ledger: Database) -> None:
    broker, due = MemoryBroker(), datetime.now(UTC) - HOUR
    envelope = encode(Note(), due_at=due)
    delays.schedule(ledger, [envelope])
    broker.down = True
    for _ in range(2):
        with pytest.raises(BrokerUnavailable):
            due_jobs.send_due(ledger, broker)
    assert (row_of(ledger, envelope.id).state, row_of(ledger, envelope.id).due_at) == (State.SCHEDULED, due)
    broker.down = False
    assert due_jobs.send_due(ledger, broker) == 1


class During(MemoryBroker):
    """Does something between a send and its mark."""

    def __init__(self, act: Any) -> None:
        super().__init__()
        self.act = act

    def send(self, envelopes: Any) -> None:
        super().send(envelopes)
        self.act(envelopes)


def test_a_crash_between_sending_and_marking_sends_again_and_the_claim_absorbs_it(ledger: Database) -> None:
    class Crash(BaseException):
        pass

    def crash(_: object) -> None:
        raise Crash

    envelope = encode(Note(), due_at=datetime.now(UTC))
    delays.schedule(ledger, [envelope])
    broker = During(crash)
    with pytest.raises(Crash):
        due_jobs.send_due(ledger, broker)
    change(ledger, envelope.id, due_at=datetime.now(UTC))  # the reservation has ended
    broker.act = lambda _: None
    assert due_jobs.send_due(ledger, broker) == 1
    first, second = [decode(out) for out in sent_by(broker)]
    assert (first.id, first.attempt, first.fence) == (second.id, second.attempt, second.fence)
    assert end(ledger, claimed(ledger, first), Outcome.SUCCEEDED)
    from support.ledgers import claim_one

    assert getattr(claim_one(ledger, second), "reason", None) == "ended"


def test_a_worker_that_is_faster_than_the_mark_is_not_overwritten(ledger: Database) -> None:
    envelope = encode(Note(), due_at=datetime.now(UTC))
    delays.schedule(ledger, [envelope])
    due_jobs.send_due(ledger, During(lambda envelopes: claimed(ledger, decode(envelopes[0]))))
    assert row_of(ledger, envelope.id).state == State.RUNNING


def test_a_job_cancelled_while_it_is_sent_stays_cancelled(ledger: Database) -> None:
    envelope = encode(Note(), due_at=datetime.now(UTC))
    delays.schedule(ledger, [envelope])
    due_jobs.send_due(ledger, During(lambda _: request_cancel(ledger, envelope.id)))
    assert row_of(ledger, envelope.id).state == State.CANCELLED


def test_a_delayed_job_of_an_untracked_kind_leaves_the_ledger_when_the_broker_has_it(ledger: Database) -> None:
    envelope = encode(Tick(), due_at=datetime.now(UTC))
    delays.schedule(ledger, [envelope])
    assert due_jobs.send_due(ledger, MemoryBroker()) == 1
    assert row_of(ledger, envelope.id) is None


def test_queues_left_out_do_not_hold_up_the_others(ledger: Database) -> None:
    broker, now = MemoryBroker(), datetime.now(UTC)
    full = [encode(Note(), due_at=now - HOUR) for _ in range(5)]
    other = encode(Tick(), due_at=now)
    delays.schedule(ledger, [*full, other])
    assert due_jobs.send_due(ledger, broker, limit=2, exclude=["notes"]) == 1
    assert [out.id for out in sent_by(broker)] == [other.id]


def test_due_jobs_are_sent_once_by_several_dispatchers(ledger_url: str) -> None:
    database, broker = Database(ledger_url), MemoryBroker()
    now = datetime.now(UTC)
    envelopes = [encode(Note(text=str(number)), due_at=now) for number in range(500)]
    delays.schedule(database, envelopes)
    sent: list[int] = []
    errors: list[Exception] = []
    start = threading.Barrier(3)

    def dispatch() -> None:
        own = Database(ledger_url)
        try:
            start.wait()
            while own_sent := due_jobs.send_due(own, broker, limit=50):
                sent.append(own_sent)
        except Exception as error:
            errors.append(error)
        finally:
            own.close()

    threads = [threading.Thread(target=dispatch) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    while own_sent := due_jobs.send_due(database, broker):  # rows that all three had skipped
        sent.append(own_sent)
    database.close()
    assert errors == []
    assert sum(sent) == 500
    assert sorted(out.id for out in sent_by(broker)) == sorted(envelope.id for envelope in envelopes)


def not_known(sent: Envelope | Message, *, redelivered: bool = False, fence: int | None = None) -> delays.HoldRequest:
    envelope = sent if isinstance(sent, Envelope) else encode(sent.job, id=sent.id, fence=sent.fence)
    ours = envelope.headers["penstock"].get("fence", 0)
    row = delays.waiting(envelope)
    return delays.HoldRequest(
        row, ours if fence is None else fence, redelivered, "unknown_kind", "no module defines it"
    )


def hold(ledger: Database, request: delays.HoldRequest, grace: timedelta = HOUR) -> str:
    [answer] = delays.hold_back(ledger, [request], worker="old", grace=grace)
    return answer


def held_row(ledger: Database, job_id: str) -> Any:
    select = sa.select(held_jobs).where(held_jobs.c.job_id == job_id)
    return ledger.read(lambda connection: connection.execute(select).first())


@pytest.mark.parametrize("job", [Note(), Tick()], ids=["tracked", "untracked"])
def test_a_job_that_a_worker_does_not_know_is_sent_again_until_its_grace_is_over(ledger: Database, job: Job) -> None:
    broker, envelope = MemoryBroker(), encode(job)
    assert hold(ledger, not_known(envelope)) == "held"
    first, row = held_row(ledger, envelope.id), row_of(ledger, envelope.id)
    assert (row.state, row.due_at, first.worker, first.fence) == (State.SCHEDULED, first.due_at, "old", 0)
    assert timedelta(0) < row.due_at - first.since <= timedelta(seconds=1)
    assert first.until - first.since == HOUR
    change(ledger, envelope.id, due_at=datetime.now(UTC) - HOUR)
    assert due_jobs.send_due(ledger, broker) == 1
    [again] = sent_by(broker)
    assert hold(ledger, not_known(again)) == "held"
    second = held_row(ledger, envelope.id)
    assert (second.since, second.until) == (first.since, first.until), "the grace counts from the first time"
    over = sa.update(held_jobs).values(until=datetime.now(UTC) - HOUR)
    ledger.write(lambda connection: connection.execute(over))
    assert hold(ledger, not_known(again)) == "over"


def test_the_pauses_of_a_held_job_grow_to_a_few_seconds(ledger: Database) -> None:
    envelope = encode(Note())
    hold(ledger, not_known(envelope))
    for age, pause in ((2.5, 2.5), (600, 5)):
        since = datetime.now(UTC) - timedelta(seconds=age)
        change(ledger, envelope.id, state=State.QUEUED)
        ledger.write(lambda connection, since=since: connection.execute(sa.update(held_jobs).values(since=since)))
        before = clock(ledger)
        assert hold(ledger, not_known(envelope)) == "held"
        assert held_row(ledger, envelope.id).due_at >= before + timedelta(seconds=pause) - timedelta(milliseconds=5)


def test_a_claim_ends_the_grace_of_a_held_job(ledger: Database) -> None:
    sent = message(Note())
    hold(ledger, not_known(encode(sent.job, id=sent.id)))
    since = held_row(ledger, sent.id).since
    end(ledger, claimed(ledger, sent), Outcome.RETRY, due_at=datetime.now(UTC))
    broker = MemoryBroker()
    assert due_jobs.send_due(ledger, broker) == 1
    assert hold(ledger, not_known(sent_by(broker)[0])) == "held"
    assert held_row(ledger, sent.id).since > since
    assert row_of(ledger, sent.id).failures == 1


def test_a_copy_of_a_job_that_goes_on_elsewhere_is_not_held(ledger: Database) -> None:
    start_worker(ledger, "w1")
    sent = message(Note())
    claim = claimed(ledger, sent)
    assert hold(ledger, not_known(sent)) == "copy"
    assert row_of(ledger, sent.id).state == State.RUNNING
    end(ledger, claim, Outcome.SNOOZED, due_at=datetime.now(UTC) + HOUR)
    assert hold(ledger, not_known(sent)) == "copy"
    assert hold(ledger, not_known(sent, fence=1)) == "copy", "it waits for another time"
    change(ledger, sent.id, state=State.SUCCEEDED)
    assert hold(ledger, not_known(sent, fence=1)) == "copy"
    change(ledger, sent.id, state=State.RETRYING, due_at=datetime.now(UTC))
    assert hold(ledger, not_known(sent, fence=1)) == "held"
    assert row_of(ledger, sent.id).state == State.RETRYING


def test_a_job_of_a_dead_worker_is_held_with_its_crash_and_one_of_a_live_worker_is_waited_for(
    ledger: Database,
) -> None:
    start_worker(ledger, "alive")
    start_worker(ledger, "dead", lease=-HOUR)
    note, pay, ring = message(Note()), message(Pay(amount=1)), message(Ring(number="1"))
    claimed(ledger, note, worker="dead")
    claimed(ledger, pay, worker="alive")
    claimed(ledger, ring, worker="dead")
    assert hold(ledger, not_known(note, redelivered=True)) == "held"
    row = row_of(ledger, note.id)
    assert (row.state, row.crashes, row.fence, row.due_at) == (
        *(State.SCHEDULED, 1, 2),
        held_row(ledger, note.id).due_at,
    )
    assert [attempt.outcome for attempt in attempts_of(ledger, note.id)] == [Outcome.CRASHED]
    assert hold(ledger, not_known(pay, redelivered=True)) == "running"
    assert hold(ledger, not_known(ring, redelivered=True)) == "copy", "it is buried, as always"
    start_worker(ledger, "alive", lease=-HOUR)
    assert hold(ledger, not_known(pay, redelivered=True)) == "held"


def test_a_job_that_is_held_while_its_sending_is_being_marked_stays_held(ledger: Database) -> None:
    envelope = encode(Note())
    delays.schedule(ledger, [envelope])
    rows, reserved_until = delays.reserve(ledger, 10, ())
    assert hold(ledger, not_known(envelope)) == "held"
    delays.mark_as_sent(ledger, rows, reserved_until, time.monotonic())
    row = row_of(ledger, envelope.id)
    assert (row.state, row.due_at) == (State.SCHEDULED, held_row(ledger, envelope.id).due_at)


def test_a_held_job_whose_key_is_cancelled_stays_cancelled(ledger: Database) -> None:
    envelope = encode(Note(), key="k")
    cancel_key(ledger, "k")
    assert hold(ledger, not_known(envelope)) == "copy"
    assert row_of(ledger, envelope.id).state == State.CANCELLED


def test_a_job_with_an_eta_waits_for_it_before_its_grace_begins(ledger: Database) -> None:
    envelope = stock_envelope("who.knows", {}, queue="notes", eta=(datetime.now(UTC) + HOUR).isoformat())
    assert hold(ledger, delays.HoldRequest(delays.waiting(envelope), 0, False, "unknown_kind", "")) == "copy"
    assert row_of(ledger, envelope.id).state == State.SCHEDULED
    assert held_row(ledger, envelope.id) is None
