"""The lookout: one statement says which services have work, and they wake."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from support.ledgers import Note
from support.polling import until

from penstock.config.errors import LedgerUnavailable
from penstock.ledger.members import controls
from penstock.ledger.outbox import rows as outbox_rows
from penstock.ledger.rows.waits import limit_waits
from penstock.ledger.schedules import due as due_schedules
from penstock.ledger.sql import tables
from penstock.ledger.sql.database import Database
from penstock.ledger.transitions import due as due_jobs
from penstock.ledger.transitions.due import schedule
from penstock.ledger.workflows import read as due_workflows
from penstock.producers.senders.memory import MemoryBroker
from penstock.schemas.wire.codec import encode
from penstock.workers.dispatcher import poller
from penstock.workers.dispatcher.due_jobs import DueJobs
from penstock.workers.dispatcher.poller import Lookout

HOUR = timedelta(hours=1)


def _step(due_at: datetime) -> dict[str, Any]:
    return {"workflow_id": due_at.isoformat(), "number": 0, "step": "a", "state": "waiting", "due_at": due_at}


def _schedule(due_at: datetime) -> dict[str, Any]:
    return {"name": due_at.isoformat(), "source": "made", "rule": "{}", "due_at": due_at}


def _outbox_row(taken_until: datetime | None) -> dict[str, Any]:
    row = {"id": "1", "kind": "k", "queue": "q", "priority": "normal", "track": True, "headers": "{}", "body": b""}
    return {**row, "created_at": datetime.now(UTC), "taken_until": taken_until}


def _pause(until: datetime) -> dict[str, Any]:
    row = {"scope": "queue", "name": until.isoformat(), "what": "pause", "actor": "anna"}
    return {**row, "since": until - HOUR, "until": until}


def _wait(slot: str) -> dict[str, Any]:
    now = datetime.now(UTC)
    return {"job_id": slot, "slot": slot, "enqueued_at": now, "due_at": now}


SOON, LONG_AGO = datetime.now(UTC) + HOUR, datetime.now(UTC) - HOUR
QUESTIONS = [
    (due_workflows.any_due(), tables.steps, _step(SOON), _step(LONG_AGO)),
    (due_schedules.any_due(), tables.schedules, _schedule(SOON), _schedule(LONG_AGO)),
    (outbox_rows.any_free(), tables.outbox, _outbox_row(SOON), _outbox_row(None)),
    (controls.any_ended(timedelta(seconds=1)), tables.controls, _pause(SOON), _pause(LONG_AGO)),
    (limit_waits.any_waits(), tables.limit_waits, _wait(f"{limit_waits.PAUSED}all:"), _wait("bank:")),
]


@pytest.mark.parametrize(("work", "table", "not_yet", "now"), QUESTIONS, ids=[each[1].name for each in QUESTIONS])
def test_a_question_is_true_when_there_is_work(
    ledger: Database, work: sa.ColumnElement[bool], table: sa.Table, not_yet: dict[str, Any], now: dict[str, Any]
) -> None:
    look = ledger.repeated(sa.select(work.label("work")))
    try:
        assert look.values() == [False]
        ledger.write(lambda connection: connection.execute(sa.insert(table), not_yet))
        assert look.values() == [False]
        ledger.write(lambda connection: connection.execute(sa.insert(table), now))
        assert look.values() == [True]
    finally:
        look.close()


def test_a_job_that_is_due_wakes_its_service(ledger: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(poller, "_WATCHED_SECONDS", 3600.0)
    broker, now = MemoryBroker(), datetime.now(UTC)
    service = DueJobs(ledger, broker)
    services = [service, Lookout(ledger, [service])]
    for each in services:
        each.start()
    try:
        schedule(ledger, [encode(Note(), due_at=now + HOUR)])
        for number in (1, 2):
            schedule(ledger, [encode(Note(), due_at=now - HOUR)])
            until(lambda number=number: broker.depths(["notes"]) == {"notes": number})
    finally:
        for each in services:
            each.stop()
        assert all(each.join(30.0) for each in services)


def test_a_look_that_fails_is_repeated_on_another_connection(ledger: Database) -> None:
    look = ledger.repeated(sa.select(due_jobs.any_due().label("work")))
    try:
        assert look.values() == [False]
        connection = look._connection
        assert connection is not None
        connection.connection.driver_connection.close()  # type: ignore[union-attr]
        assert look.values() == [False], "asked in the usual way"
        assert look.values() == [False]
        assert look._connection is not connection
    finally:
        look.close()


def test_a_look_says_what_the_ledger_lacks(ledger: Database) -> None:
    look = ledger.repeated(sa.select(sa.exists(sa.select(sa.text("1")).select_from(sa.table("missing")))))
    try:
        for _ in range(2):
            with pytest.raises(LedgerUnavailable, match="is not set up; run: penstock db upgrade"):
                look.values()
    finally:
        look.close()
