"""Handlers that run in the testing kit."""

from __future__ import annotations

import os
from datetime import timedelta

import pytest
import sqlalchemy as sa
from producers.testing.kit_jobs import (
    Alone,
    Broken,
    Child,
    Endless,
    Invoice,
    Light,
    Mail,
    Mailer,
    Receipt,
    Says,
    Write,
    at,
    producer,
    things,
)
from sqlalchemy.orm import Session

from penstock.config.errors import (
    JobFailed,
    KindError,
    WaitTimeout,
)
from penstock.config.settings import Settings
from penstock.producers.outbox import Outbox, create_outbox
from penstock.producers.testing import Kit, testing
from penstock.schemas import Job


class Unhandled(Job, kind="kit.unhandled", queue="kit"): ...


def waiting(penstock: Kit) -> list[Job]:
    return [entry.job for entry in penstock.enqueued()]


# Running.


def test_drain_runs_handlers_and_what_they_enqueue(penstock: Kit) -> None:
    producer.enqueue(Invoice(n=150))
    producer.enqueue(Receipt(n=1), priority="high")
    runs = penstock.drain()
    assert [(run.job, run.outcome, run.result) for run in runs] == [
        (Receipt(n=1), "succeeded", 1),
        (Invoice(n=150), "succeeded", "invoice 150"),
        (Receipt(n=150), "succeeded", 150),
        (Receipt(n=50), "succeeded", 50),
    ]
    penstock.refute_enqueued()
    assert penstock.drain() == []


def test_drain_of_some_kinds_leaves_the_others(penstock: Kit) -> None:
    producer.enqueue(Unhandled())
    producer.enqueue(Invoice(n=1))
    assert [run.job for run in penstock.drain(Invoice)] == [Invoice(n=1)]
    assert [(entry.job, entry.run_at) for entry in penstock.enqueued()] == [(Unhandled(), None), (Receipt(n=1), None)]
    with pytest.raises(KindError, match=r"'kit\.unhandled' has no handler here"):
        penstock.drain()
    runs = penstock.drain(raising=False)
    assert {(type(run.job), str(run.outcome)) for run in runs} == {(Unhandled, "dead"), (Receipt, "succeeded")}


def test_an_error_of_a_handler_fails_the_test(penstock: Kit) -> None:
    producer.enqueue(Invoice(n=-1))
    producer.enqueue(Receipt(n=1))
    with pytest.raises(Broken, match="invoice -1") as caught:
        penstock.drain()
    assert "run_invoice" in [entry.name for entry in caught.traceback]
    assert caught.value.__notes__ == ["in drain(), at attempt 1 of Invoice(n=-1, iban='***')"]
    assert [entry.state for entry in penstock.enqueued()] == ["retrying", "queued"]


def test_a_retry_waits_for_travel_and_ends_as_its_policy_says(penstock: Kit) -> None:
    handle = producer.enqueue(Invoice(n=-1))
    outcomes = []
    for _ in range(4):
        outcomes.append([(run.attempt, str(run.outcome)) for run in penstock.drain(raising=False)])
        assert penstock.drain() == []
        penstock.travel(hours=2)
    assert outcomes == [[(1, "retry")], [(2, "retry")], [(3, "dead")], []]
    assert handle.status().failures == 3


def test_the_return_value_of_a_handler_is_an_outcome(penstock: Kit) -> None:
    for what in ("snooze", "discard", "retry"):
        producer.enqueue(Says(what=what))
    before = at(1 / 60)
    runs = penstock.drain()
    assert [str(run.outcome) for run in runs] == ["snoozed", "discarded", "retry"]
    assert [run.error for run in runs] == [None, "no", "busy"]
    penstock.assert_enqueued(Says, what="snooze", run_at=(before - timedelta(seconds=1), at(1 / 60)))
    penstock.travel(minutes=2)
    with pytest.raises(JobFailed, match="busy"):
        penstock.drain()


def test_resources_are_replaced(penstock: Kit) -> None:
    mailer = penstock.replace(Mailer, Mailer())
    producer.enqueue(Mail(to="ada"))
    penstock.drain()
    assert mailer.sent == ["ada"]
    with testing(Settings()) as other:
        penstock.replace(Mailer, Mailer())
        producer.enqueue(Mail(to="bob"))
        other.drain()
    assert mailer.sent == ["ada"]


def test_a_resource_that_cannot_be_opened_fails_the_test(penstock: Kit) -> None:
    producer.enqueue(Mail(to="ada"))
    with pytest.raises(JobFailed, match="a test replaces it"):
        penstock.drain()


def test_an_isolated_handler_runs_in_this_process(penstock: Kit) -> None:
    producer.enqueue(Child())
    assert [run.result for run in penstock.drain()] == [os.getpid()]


def test_a_kind_that_is_not_tracked_runs(penstock: Kit) -> None:
    producer.enqueue(Light(n=1))
    producer.enqueue(Light(n=-1))
    assert [(run.job, str(run.outcome)) for run in penstock.drain(raising=False)] == [
        (Light(n=1), "succeeded"),
        (Light(n=-1), "retry"),
    ]
    penstock.travel(hours=1)
    assert [str(run.outcome) for run in penstock.drain(raising=False)] == ["dead"]
    penstock.refute_enqueued()


def test_jobs_without_end_reach_the_limit(penstock: Kit) -> None:
    producer.enqueue(Endless())
    with pytest.raises(WaitTimeout, match=r"has run 5 attempts and more are due, such as a kit\.endless"):
        penstock.drain(limit=5)


def test_a_handlers_own_drain_is_refused(penstock: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Mailer, "sent", property(lambda _: penstock.drain()), raising=False)
    monkeypatch.setattr(Mailer, "__init__", lambda _: None)
    penstock.replace(Mailer, Mailer())
    producer.enqueue(Mail(to="ada"))
    with pytest.raises(RuntimeError, match="under way"):
        penstock.drain()


def test_rows_written_with_the_session_of_a_handler_are_kept(penstock: Kit) -> None:
    engine = sa.create_engine(penstock.database_url)
    things.create(engine)
    producer.enqueue(Write(n=1))
    producer.enqueue(Write(n=-1))
    penstock.drain(raising=False)
    with engine.connect() as connection:
        assert connection.execute(sa.select(things.c.n)).scalars().all() == [1]
    engine.dispose()


def test_the_outbox_is_taken_when_the_test_says_so(penstock: Kit) -> None:
    engine = sa.create_engine("sqlite://")
    create_outbox(engine)
    with Session(engine) as session:
        Outbox().enqueue(session, Receipt(n=1))
        session.rollback()
        Outbox().enqueue(session, Receipt(n=2), delay=60)
        Outbox().enqueue_many(session, [Alone(n=1), Alone(n=1), Light(n=3)])
        penstock.refute_enqueued()
        runs = penstock.take_outbox(session)
        assert [run.job for run in runs] == [Receipt(n=2), Alone(n=1), Light(n=3)] == waiting(penstock)
        penstock.assert_enqueued(Receipt, n=2, delay=60)
        penstock.assert_enqueued(Alone, delay=0)
        assert penstock.take_outbox(session) == []
    assert [run.job for run in penstock.drain()] == [Alone(n=1), Light(n=3)]
    engine.dispose()
