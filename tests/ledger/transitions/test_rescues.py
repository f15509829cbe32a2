from __future__ import annotations

from datetime import timedelta

from support.ledgers import (
    Note,
    Ring,
    attempts_of,
    claimed,
    end,
    letter_of,
    letters,
    message,
    row_of,
    start_worker,
)

from penstock.ledger.members import heartbeats
from penstock.ledger.sql.database import Database
from penstock.ledger.transitions.abandoned import bury_abandoned, bury_dropped
from penstock.schemas import Outcome, State
from penstock.schemas.wire.codec import encode

DEAD = timedelta(seconds=-1)


def test_an_at_most_once_job_of_a_dead_worker_is_buried_and_others_are_left_to_the_broker(ledger: Database) -> None:
    start_worker(ledger, "alive")
    start_worker(ledger, "gone", lease=DEAD)
    ring, note, other = message(Ring(number="1")), message(Note()), message(Ring(number="2"))
    claim = claimed(ledger, ring, worker="gone")
    claimed(ledger, note, worker="gone")
    claimed(ledger, other, worker="alive")
    assert bury_abandoned(ledger) == [ring.id]
    assert bury_abandoned(ledger) == []
    row, letter = row_of(ledger, ring.id), letter_of(ledger, ring.id)
    assert (row.state, row.crashes, letter.reason) == (State.DEAD, 1, "crashed")
    assert [attempt.outcome for attempt in attempts_of(ledger, ring.id)] == [Outcome.CRASHED]
    assert row_of(ledger, note.id).state == State.RUNNING
    assert row_of(ledger, other.id).state == State.RUNNING
    assert not end(ledger, claim, Outcome.SUCCEEDED, worker="gone")  # it was only stopped for a while


def test_a_worker_that_is_silent_for_no_longer_than_the_patience_keeps_its_at_most_once_job(ledger: Database) -> None:
    """A handler that holds the interpreter keeps the worker from renewing its lease."""
    start_worker(ledger, "silent", lease=DEAD)
    ring = message(Ring(number="1"))
    claim = claimed(ledger, ring, worker="silent")
    assert bury_abandoned(ledger, patience=timedelta(hours=1)) == []
    assert end(ledger, claim, Outcome.SUCCEEDED, worker="silent")


def test_a_worker_that_stopped_in_order_leaves_nothing_it_could_still_run(ledger: Database) -> None:
    start_worker(ledger, "w1")
    ring = message(Ring(number="1"))
    claimed(ledger, ring)
    heartbeats.sign_off(ledger, "w1")
    assert bury_abandoned(ledger) == [ring.id]


def test_a_dropped_delivery_is_buried_and_copies_are_not(ledger: Database) -> None:
    unseen = encode(Note(text="unseen"))
    assert bury_dropped(ledger, unseen, unseen.body, "dropped")
    assert (letter_of(ledger, unseen.id).reason, row_of(ledger, unseen.id).state) == ("delivery_limit", State.DEAD)

    done = message(Note())
    end(ledger, claimed(ledger, done), Outcome.SUCCEEDED)
    assert bury_dropped(ledger, encode(Note(), id=done.id), b"", "dropped")
    assert row_of(ledger, done.id).state == State.SUCCEEDED
    assert len(letters(ledger)) == 1


def test_a_dropped_delivery_of_a_running_job_waits_for_its_worker(ledger: Database) -> None:
    start_worker(ledger, "w1")
    sent = message(Note())
    claimed(ledger, sent)
    envelope = encode(Note(), id=sent.id)
    assert not bury_dropped(ledger, envelope, b"", "dropped")
    start_worker(ledger, "w1", lease=DEAD)
    assert bury_dropped(ledger, envelope, b"", "dropped")
    assert (row_of(ledger, sent.id).state, letter_of(ledger, sent.id).reason) == (State.DEAD, "delivery_limit")
