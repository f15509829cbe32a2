"""Ledgers for tests on every database that runs here, and short ways to say things about jobs in them."""

from __future__ import annotations

import json
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from penstock.ledger.members import heartbeats
from penstock.ledger.rows.attempts import history
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import dead_letters, jobs, metadata, workers
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
    is_postgres = url.get_backend_name() == "postgresql"
    with engine.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
        if is_postgres:  # the server is not killed, and each commit would wait for the disk
            connection.execute(sa.text(f"ALTER DATABASE {name} SET synchronous_commit = off"))
    # Else PyMySQL reads all certificates of the system for each connection, and then needs none.
    options = {} if is_postgres else {"ssl_disabled": "true"}
    try:
        yield url.set(database=name).update_query_dict(options).render_as_string(hide_password=False)
    finally:
        force = " WITH (FORCE)" if is_postgres else ""
        with engine.connect() as connection:
            connection.execute(sa.text(f"DROP DATABASE {name}{force}"))


def set_up(url: str) -> str:
    """Make this database an empty ledger. Returns the URL."""
    if not _copied(url):
        with closing(Database(upgraded(url))) as database:
            empty(database)
    return url


def upgraded(url: str) -> str:
    """Make this database a ledger, if it is not yet one; its rows stay. Returns the URL."""
    if not _copied(url) and url not in _upgraded:
        with closing(Database(url)) as database:
            upgrade(database)
        if not url.startswith("sqlite:"):
            _upgraded.add(url)
    return url


_upgraded: set[str] = set()
"""Databases of servers that this process has upgraded. Their tests leave the tables as they are."""


def _copied(url: str) -> bool:
    """Make a new file of SQLite a copy of an empty ledger, which takes a hundredth of the time of all migrations.

    Returns False for an existing file, and for another database.
    """
    file = Path(sa.make_url(url).database or "")
    if not url.startswith("sqlite:///") or file.exists():
        return False
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch(0o600)
    file.write_bytes(_empty_file())
    return True


@cache
def _empty_file() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        with closing(Database(f"sqlite:///{folder}/ledger.db")) as database:
            upgrade(database)
            assert database.empty_log()
        return Path(folder, "ledger.db").read_bytes()


def empty(database: Database) -> None:
    """Delete all rows. Most tables have none, and to ask is cheaper than to delete."""

    def delete_all(connection: sa.Connection) -> None:
        filled = set(connection.scalars(_FILLED))
        for table in metadata.sorted_tables:
            if table.name in filled:
                connection.execute(sa.delete(table))

    database.write(delete_all)


_FILLED = sa.union_all(
    *(
        sa.select(sa.literal(table.name)).where(sa.exists(sa.select(sa.literal(1)).select_from(table)))
        for table in metadata.sorted_tables
    )
)


def start_worker(database: Database, name: str, *, lease: timedelta = LEASE) -> None:
    """A negative lease makes a worker that died."""
    heartbeats.register(database, name, engine="inline", queues=["notes"], kinds={}, lease=lease)


def let_leases_run(database: Database, seconds: float) -> None:
    """Time passes in which no member renews its lease."""

    def move_back(connection: sa.Connection) -> None:
        for row in connection.execute(sa.select(workers.c.name, workers.c.lease_until)).all():
            until = row.lease_until - timedelta(seconds=seconds)
            connection.execute(sa.update(workers).where(workers.c.name == row.name).values(lease_until=until))

    database.write(move_back)


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
    kind: str,
    kwargs: dict[str, Any],
    *,
    queue: str,
    args: tuple[Any, ...] = (),
    embed: dict[str, Any] | None = None,
    **headers: Any,
) -> Envelope:
    """Envelope of an unmodified Celery client.

    Arguments:
        embed: its callbacks, errbacks and chain.
    """
    embed = {"callbacks": None, "errbacks": None, "chain": None, "chord": None} | (embed or {})
    body = json.dumps([args, kwargs, embed])
    job_id = headers.pop("id", str(uuid.uuid4()))
    return Envelope(queue, "normal", {"lang": "py", "task": kind, "id": job_id, **headers}, body.encode())
