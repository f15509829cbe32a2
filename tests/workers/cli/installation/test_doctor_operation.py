"""`penstock doctor` about what runs: each trouble by itself, in a ledger and a broker that are real."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from support.ledgers import LEASE, Note, claimed, end, message

from penstock.config.settings import load_settings
from penstock.ledger.members import heartbeats
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import dead_letters, held_jobs, jobs, schedules
from penstock.ledger.sql.upgrade import upgrade
from penstock.ledger.transitions.due import keep, waiting
from penstock.producers.outbox import Outbox
from penstock.producers.senders import open_sender
from penstock.schemas import Outcome, State
from penstock.schemas.wire.codec import encode
from penstock.schemas.wire.ids import new_id

Doctor = Callable[[], dict[str, dict[str, Any]]]


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def ledger(request: pytest.FixtureRequest, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """The ledger of the settings, with a dispatcher and a worker that are alive."""
    from support.ledgers import empty

    url = str(request.getfixturevalue(f"{request.param}_url"))
    monkeypatch.setenv("PENSTOCK_DATABASE_URL", url)
    database = Database(url)
    upgrade(database)
    empty(database)
    register(database, "d1", engine=heartbeats.DISPATCHER, queues=["dispatcher"])
    register(database, "w1", engine="celery", queues=["notes", "ticks"])
    yield database
    database.close()


@pytest.fixture
def doctor(penstock: Callable[..., Any], ledger: Database) -> Doctor:
    def run() -> dict[str, dict[str, Any]]:
        done = penstock("doctor", "--json")
        assert done.code == int(any(not check["ok"] for check in done.json))
        return {check["check"]: check for check in done.json}

    return run


def register(database: Database, name: str, *, engine: str, queues: list[str], lease: timedelta = LEASE) -> None:
    kinds = {"ledger.note": "notes", "ledger.tick": "ticks"} if engine != heartbeats.DISPATCHER else {}
    heartbeats.register(database, name, engine=engine, queues=queues, kinds=kinds, lease=lease)


def levels(checks: dict[str, dict[str, Any]]) -> set[str]:
    """The checks that found something."""
    return {name for name, check in checks.items() if check.get("level", "OK") != "OK" or not check["ok"]}


def change(database: Database, statement: Any) -> None:
    database.write(lambda connection: connection.execute(statement))


def test_an_installation_that_runs_well_has_nothing_to_do(doctor: Doctor) -> None:
    checks = doctor()
    assert levels(checks) == set()
    assert "d1" in checks["dispatchers"]["detail"]


def test_a_dispatcher_that_died_is_named(doctor: Doctor, ledger: Database) -> None:
    register(ledger, "d1", engine=heartbeats.DISPATCHER, queues=["dispatcher"], lease=-LEASE)
    checks = doctor()
    assert levels(checks) == {"dispatchers"}
    assert "the last one, d1, was last seen" in checks["dispatchers"]["detail"]
    assert checks["dispatchers"]["advice"] == "start a dispatcher: penstock dispatcher"


def test_queues_without_a_worker_are_named_with_what_waits_there(doctor: Doctor, workplace: Path) -> None:
    (workplace / "penstock.toml").write_text("[queues.reports]\n[queues.notes]\n")
    checks = doctor()
    assert levels(checks) == {"queues"}
    assert (checks["queues"]["level"], checks["queues"]["ok"]) == ("WARN", True)
    assert "'reports'" in checks["queues"]["detail"]
    settings = load_settings()
    sender = open_sender(settings.broker_url, prefix=settings.prefix)
    sender.send([encode(Note(), queue="reports"), encode(Note(), queue="reports"), encode(Note())])
    sender.close()
    checks = doctor()
    assert levels(checks) == {"queues"}
    assert checks["queues"]["detail"] == "queue 'reports' has 2 waiting jobs and no live worker"
    assert "penstock worker --queues reports" in checks["queues"]["advice"]


def test_kinds_without_a_handler_are_named(doctor: Doctor, ledger: Database) -> None:
    sent, held = new_id(), new_id()
    for job_id, state in ((sent, State.QUEUED), (held, State.SCHEDULED)):
        row = waiting(encode(Note(), id=job_id)) | {"kind": f"lost.{state}", "state": state}
        change(ledger, sa.insert(jobs).values(row | {"due_at": datetime.now(UTC) + timedelta(minutes=1)}))
    texts = {"worker": "w1", "reason": "unknown_kind", "detail": ""}
    times = dict.fromkeys(("since", "until", "due_at"), datetime.now(UTC) + timedelta(minutes=1))
    change(ledger, sa.insert(held_jobs).values(job_id=held, fence=0, **texts, **times))
    checks = doctor()
    assert levels(checks) == {"kinds"}
    assert "1 jobs of lost.queued in queue 'notes'" in checks["kinds"]["detail"]
    assert "1 jobs of lost.scheduled in queue 'notes'" in checks["kinds"]["detail"]


def test_what_a_dispatcher_has_left_lying_is_named(doctor: Doctor, ledger: Database) -> None:
    past = datetime.now(UTC) - timedelta(minutes=10)
    keep(ledger, [waiting(encode(Note(), due_at=past))])
    ledger.write(lambda connection: Outbox().enqueue(connection, Note()))
    change(ledger, sa.text("UPDATE penstock_outbox SET created_at = :past").bindparams(past=past.replace(tzinfo=None)))
    change(ledger, sa.insert(schedules).values(name="nightly", source="made", rule="{}", next_at=past, due_at=past))
    checks = doctor()
    assert levels(checks) == {"due jobs", "firing", "outbox"}
    assert "is due for 10 min" in checks["due jobs"]["detail"]
    assert "'nightly' is due for 10 min" in checks["firing"]["detail"]
    assert ": 1 jobs, the first for 10 min" in checks["outbox"]["detail"]


def test_retention_that_is_behind_and_new_dead_letters_are_worth_a_look(doctor: Doctor, ledger: Database) -> None:
    old = claimed(ledger, message(Note()))
    end(ledger, old, Outcome.SUCCEEDED)
    change(ledger, sa.update(jobs).values(finished_at=datetime.now(UTC) - timedelta(days=9)))
    row = {"kind": "shop.order", "queue": "orders", "reason": "failed", "detail": "", "fingerprint": ""}
    for number, age in enumerate((timedelta(minutes=1), timedelta(minutes=1), timedelta(hours=2))):
        values = {"id": f"d{number}", "created_at": datetime.now(UTC) - age, **row}
        change(ledger, sa.insert(dead_letters).values(values))
    checks = doctor()
    assert levels(checks) == {"retention", "dead letters"}
    assert {checks[name]["level"] for name in ("retention", "dead letters")} == {"WARN"}
    assert "for 2 d after" in checks["retention"]["detail"]
    assert "2 in the last hour: 2 of shop.order in 'orders'" in checks["dead letters"]["detail"]


def test_advice_is_printed_below_what_is_wrong(penstock: Callable[..., Any], ledger: Database) -> None:
    register(ledger, "d1", engine=heartbeats.DISPATCHER, queues=["dispatcher"], lease=-LEASE)
    lines = penstock("doctor").out.splitlines()
    [place] = [number for number, line in enumerate(lines) if line.startswith("WRONG  dispatchers   none is alive")]
    assert lines[place + 1].strip() == "To do: start a dispatcher: penstock dispatcher"
