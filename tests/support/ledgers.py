"""Ledgers for tests on every database that runs here, and short ways to say things about jobs in them."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from penstock.ledger.members import heartbeats
from penstock.ledger.rows.attempts import history
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import dead_letters, jobs, metadata
from penstock.ledger.sql.upgrade import upgrade
from penstock.ledger.transitions.claim import Claim, ClaimRequest, Refusal, claim
from penstock.ledger.transitions.outcome import AttemptOutcome, record
from penstock.schemas import Job, Outcome, Sensitive, State
from penstock.schemas.wire.codec import Envelope, Message, decode, encode

LEASE = timedelta(seconds=15)


class Note(Job, kind="ledger.note", queue="notes"):
    text: str = "hello"


class Pay(Job, kind="ledger.pay", queue="notes", delivery="once"):
    amount: int


class Ring(Job, kind="ledger.ring", queue="notes", delivery="at_most_once"):
    number: str


class Tick(Job, kind="ledger.tick", queue="ticks", track=False):
    number: int = 1


class Login(Job, kind="ledger.login", queue="notes", version=2):
    user: str
    password: Sensitive[str] = ""


@contextmanager
def temporary_database(server_url: str) -> Iterator[str]:
    """A database of our own on a server, dropped afterwards."""
    url = sa.make_url(server_url)
    name = f"penstock_test_{uuid.uuid4().hex[:12]}"
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sa.pool.NullPool)
    with engine.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    try:
        yield url.set(database=name).render_as_string(hide_password=False)
    finally:
        force = " WITH (FORCE)" if url.get_backend_name() == "postgresql" else ""
        with engine.connect() as connection:
            connection.execute(sa.text(f"DROP DATABASE {name}{force}"))


def set_up(url: str) -> str:
    """Make this database an empty ledger. Returns the URL."""
    database = Database(url)
    upgrade(database)
    empty(database)
    database.close()
    return url


def empty(database: Database) -> None:
    def delete_all(connection: sa.Connection) -> None:
        for table in metadata.sorted_tables:
            connection.execute(sa.delete(table))

    database.write(delete_all)


def start_worker(database: Database, name: str, *, lease: timedelta = LEASE) -> None:
    """A negative lease makes a worker that died."""
    heartbeats.register(database, name, engine="inline", queues=["notes"], kinds={}, lease=lease)


def message(job: Job, **options: Any) -> Message:
    return decode(encode(job, **options))


def claim_one(database: Database, sent: Message, *, worker: str = "w1", again: bool = False) -> Claim | Refusal:
    [answer] = claim(database, [ClaimRequest(sent, again, max_crashes=3)], worker=worker)
    return answer


def claimed(database: Database, sent: Message, *, worker: str = "w1", again: bool = False) -> Claim:
    answer = claim_one(database, sent, worker=worker, again=again)
    assert isinstance(answer, Claim), answer
    return answer


_STATES = {
    Outcome.SUCCEEDED: State.SUCCEEDED,
    Outcome.RETRY: State.RETRYING,
    Outcome.SNOOZED: State.SCHEDULED,
    Outcome.DISCARDED: State.DISCARDED,
    Outcome.CANCELLED: State.CANCELLED,
    Outcome.DEAD: State.DEAD,
    Outcome.INTERRUPTED: State.QUEUED,
    Outcome.CRASHED: State.SCHEDULED,
}


def attempt_outcome(claim: Claim, outcome: Outcome, **fields: Any) -> AttemptOutcome:
    return AttemptOutcome(claim, outcome, _STATES[outcome], datetime.now(UTC), **fields)


def end(database: Database, claim: Claim, outcome: Outcome, *, worker: str = "w1", **fields: Any) -> bool:
    [kept] = record(database, [attempt_outcome(claim, outcome, **fields)], worker=worker)
    return kept


def row_of(database: Database, job_id: str) -> Any:
    select = sa.select(jobs).where(jobs.c.id == job_id)
    return database.read(lambda connection: connection.execute(select).first())


def attempts_of(database: Database, job_id: str) -> list[Any]:
    select = sa.select(history).where(history.c.job_id == job_id).order_by(history.c.fence)
    return database.read(lambda connection: list(connection.execute(select)))


def letter_of(database: Database, dead_letter_id: str) -> Any:
    select = sa.select(dead_letters).where(dead_letters.c.id == dead_letter_id)
    return database.read(lambda connection: connection.execute(select).first())


def letters(database: Database) -> list[Any]:
    return database.read(lambda connection: list(connection.execute(sa.select(dead_letters))))


def change(database: Database, job_id: str, **values: Any) -> None:
    statement = sa.update(jobs).where(jobs.c.id == job_id).values(**values)
    database.write(lambda connection: connection.execute(statement))


def stock_envelope(
    kind: str, kwargs: dict[str, Any], *, queue: str, args: tuple[Any, ...] = (), **headers: Any
) -> Envelope:
    """Envelope of an unmodified Celery client."""
    body = json.dumps([args, kwargs, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}])
    job_id = headers.pop("id", str(uuid.uuid4()))
    return Envelope(queue, "normal", {"lang": "py", "task": kind, "id": job_id, **headers}, body.encode())
