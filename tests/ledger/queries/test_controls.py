"""Controls on every database: pauses with their end, the jobs that wait for it, concurrency and weight."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

import pytest
from support.ledgers import Note, claimed, message, row_of

from penstock.config.errors import ConfigError
from penstock.ledger.members import controls
from penstock.ledger.members.controls import Controls
from penstock.ledger.rows import audit
from penstock.ledger.rows.waits import limit_waits
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import controls as table
from penstock.ledger.transitions.outcome import AttemptOutcome, record
from penstock.producers.senders.memory import MemoryBroker
from penstock.schemas import Outcome, State
from penstock.workers.dispatcher.due_jobs import DueJobs
from penstock.workers.dispatcher.limits import Pauses

SOON = timedelta(seconds=1)


def test_a_pause_is_in_force_until_it_is_ended_and_both_are_audited(ledger: Database) -> None:
    result = controls.pause(ledger, "queue", "reports", actor="ada", reason="the printer burns")
    again = controls.pause(ledger, "queue", "reports", actor="bob", until=timedelta(hours=1))
    assert (again.since, again.actor, again.reason) == (result.since, "bob", None)
    held = controls.in_force(ledger)
    assert [pause.target for pause in held.pauses] == ["queue 'reports'"]
    assert held.pause_of("reports", {"any"}) == held.pauses[0]
    assert held.pause_of("emails", {"any"}) is None
    assert "reports" in held.paused_queues
    assert "emails" not in held.paused_queues
    assert controls.resume(ledger, "kind", "reports", actor="ada") is None
    ended = controls.resume(ledger, "queue", "reports", actor="ada")
    assert ended is not None
    assert ended.actor == "bob"
    assert controls.in_force(ledger) == Controls()
    assert controls.resume(ledger, "queue", "reports", actor="ada") is None
    acts = [(act.actor, act.act, act.subject_kind, act.subject) for act in audit.find(ledger)]
    assert acts == [
        ("ada", "resume", "queue", "reports"),
        ("bob", "pause", "queue", "reports"),
        ("ada", "pause", "queue", "reports"),
    ]


def test_a_limit_is_set_for_all_or_for_a_share_and_both_are_audited(ledger: Database) -> None:
    limit, share = "bank/concurrency-by-tenant", "bank/concurrency-by-tenant:" + "a" * 24
    first = controls.set_limit(ledger, limit, 2, actor="ada", reason="the bank is slow")
    again = controls.set_limit(ledger, limit, 2, actor="bob", until=timedelta(hours=1))
    assert (again.since, again.actor, again.target) == (first.since, "bob", f"limit {limit}")
    assert controls.set_limit(ledger, share, 7, actor="ada").value == 7
    held = controls.in_force(ledger)
    assert held.limits == {limit: 2, share: 7}
    assert (held.pauses, held.pause_of("bank"), held.concurrency, held.weights) == ((), None, {}, {})
    own, whole = held.limit_of(share), held.limit_of(f"{limit}:{'b' * 24}")
    assert own is not None
    assert whole is not None
    assert (own.value, whole.value, held.limit_of("other/concurrency:")) == (7, 2, None)
    assert controls.reset_limit(ledger, share, actor="bob") is not None
    assert controls.reset_limit(ledger, share, actor="bob") is None
    assert controls.in_force(ledger).limits == {limit: 2}
    acts = [(act.actor, act.act, act.subject_kind, act.subject) for act in audit.find(ledger)]
    assert acts == [
        ("bob", "reset", "limit", share),
        ("ada", "limit", "limit", share),
        ("bob", "limit", "limit", limit),
        ("ada", "limit", "limit", limit),
    ]
    assert audit.find(ledger)[0].detail["set_to"] == 7


def test_a_limit_whose_end_has_passed_is_over_and_then_forgotten(ledger: Database) -> None:
    controls.set_limit(ledger, "bank/concurrency", 2, actor="ada", until=timedelta(hours=1))
    over = datetime.now(UTC) - timedelta(hours=1)
    ledger.write(lambda connection: connection.execute(table.update().values(until=over)))
    assert controls.in_force(ledger) == Controls()
    assert controls.reset_limit(ledger, "bank/concurrency", actor="ada") is None
    Pauses(ledger, threading.Event()).run_once()
    assert controls.ended(ledger, timedelta()) == []


@pytest.mark.parametrize(
    ("name", "most", "until", "message"),
    [
        ("bank/rate-60s", 0, None, "from 1 to"),
        ("bank/rate-60s", 2**31, None, "from 1 to"),
        ("x" * 129, 1, None, "its name"),
        ("bank/rate-60s", 1, timedelta(0), "that has passed"),
    ],
)
def test_wrong_changes_of_limits_are_refused(
    ledger: Database, name: str, most: int, until: timedelta | None, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        controls.set_limit(ledger, name, most, actor="ada", until=until)
    assert controls.in_force(ledger) == Controls()
    assert audit.find(ledger) == []


def test_a_pause_of_all_covers_every_queue_and_kind(ledger: Database) -> None:
    controls.pause(ledger, "all", actor="ada")
    held = controls.in_force(ledger)
    assert "whatever" in held.paused_queues
    assert held.pause_of(None) == held.pauses[0]


def test_a_pause_whose_end_has_passed_is_over(ledger: Database) -> None:
    controls.pause(ledger, "kind", "a.b", actor="ada", until=timedelta(hours=1))
    over = datetime.now(UTC) - timedelta(hours=1)
    ledger.write(lambda connection: connection.execute(table.update().values(until=over)))
    assert controls.in_force(ledger).pauses == ()
    assert [pause.name for pause in controls.ended(ledger, SOON)] == ["a.b"]
    with pytest.raises(ConfigError, match="has passed"):
        controls.pause(ledger, "all", actor="ada", until=over)


def test_numbers_of_a_queue_are_set_and_taken_back(ledger: Database) -> None:
    controls.tune(ledger, "reports", "concurrency", 3, actor="ada")
    controls.tune(ledger, "reports", "weight", 5, actor="ada")
    held = controls.in_force(ledger)
    assert (held.concurrency, held.weights, held.pauses) == ({"reports": 3}, {"reports": 5}, ())
    controls.tune(ledger, "reports", "weight", None, actor="ada")
    assert controls.in_force(ledger).weights == {}
    for what, value in (("weight", 0), ("weight", 1001), ("concurrency", 10_001)):
        with pytest.raises(ConfigError, match=what):
            controls.tune(ledger, "reports", what, value, actor="ada")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["dispatcher", "dead", ""])
def test_what_is_no_queue_of_jobs_cannot_be_paused(ledger: Database, name: str) -> None:
    with pytest.raises(ConfigError):
        controls.pause(ledger, "queue", name, actor="ada")


def test_jobs_that_wait_for_the_end_of_a_pause_are_sent_in_their_order(ledger: Database) -> None:
    pause = controls.pause(ledger, "kind", "note", actor="ada")
    start = datetime(2026, 3, 1, tzinfo=UTC)
    ids = []
    for number in (3, 1, 2, 0):
        sent = message(Note(), sent_at=start + timedelta(seconds=number))
        now = datetime.now(UTC)
        outcome = AttemptOutcome(
            claimed(ledger, sent), Outcome.SNOOZED, State.SCHEDULED, now, due_at=now + SOON * 3600, waits_for=pause.slot
        )
        assert record(ledger, [outcome], worker="w1") == [True]
        ids.append(sent.id)
    assert limit_waits.counts(ledger) == {}
    assert limit_waits.slots(ledger) == []
    assert limit_waits.count(ledger, pause.slot, 3) == 3
    broker = MemoryBroker()
    due = DueJobs(ledger, broker)
    waker = Pauses(ledger, due.wakeup)
    waker.run_once()
    due.run_once()
    assert broker.sent == []
    controls.resume(ledger, "kind", "note", actor="ada")
    over = datetime.now(UTC) - timedelta(hours=1)
    ledger.write(lambda connection: connection.execute(table.update().values(until=over)))
    waker.run_once()
    due.run_once()
    assert [envelope.id for envelope in broker.sent] == [ids[3], ids[1], ids[2], ids[0]]
    assert row_of(ledger, ids[0]).attempt == 0
    assert controls.ended(ledger, SOON) != []
    waker.run_once()
    assert controls.ended(ledger, SOON) == []
