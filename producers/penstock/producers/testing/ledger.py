"""Ledger of a test: SQLite in a folder of its own, made when it is first needed. Needs penstock[sql]."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session, scoped_session

from penstock.ledger.rows.jobs import waiting_row
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import (
    UtcDateTime,
    attempts,
    cancelled_keys,
    dead_letters,
    effects,
    jobs,
    metadata,
    outbox,
    steps,
    unique_keys,
    workflows,
)
from penstock.ledger.transitions.enqueue import enter as enter_jobs
from penstock.schemas.jobs.kind import DISPATCHER_QUEUE
from penstock.schemas.states import WAITING, State
from penstock.schemas.wire.codec import Envelope

_JOB_TABLES = (jobs, attempts, unique_keys, cancelled_keys, dead_letters, effects, workflows, steps)
"""Tables about jobs. The leases of workers are left alone."""

_MEMORY = "/dev/shm"  # noqa: S108  # each has a folder of its own there
_empty_file: list[bytes] = []
_pool: list[PooledTestLedger] = []


class PooledTestLedger:
    """Database and the folder it is in, used by one test after the other: SQLAlchemy has compiled its statements by
    then, which takes longer than all they do.

    Attributes:
        folder: of the database, the storage and the mails.
    """

    def __init__(self) -> None:
        # A commit waits for the disk, and no one needs it there.
        where = _MEMORY if os.access(_MEMORY, os.W_OK) else None
        self.folder = Path(tempfile.mkdtemp(prefix="penstock-testing-", dir=where))
        self._file = self.folder / "ledger.db"
        self.pid = os.getpid()
        self.database = Database(f"sqlite:///{self._file}")
        atexit.register(self._remove)

    def _remove(self) -> None:
        if self.pid == os.getpid():  # a forked child's end is not that of its parent
            shutil.rmtree(self.folder, ignore_errors=True)

    @classmethod
    def acquire(cls) -> PooledTestLedger:
        """Ledger with empty tables."""
        _pool[:] = [ledger for ledger in _pool if ledger.pid == os.getpid()]
        ledger = _pool.pop() if _pool else cls()
        if _empty_file:
            ledger._file.write_bytes(_empty_file[0])
        else:
            metadata.create_all(ledger.database.engine)
            ledger.database.close()  # which writes all of it to the file
            _empty_file.append(ledger._file.read_bytes())
        return ledger

    @property
    def storage_url(self) -> str:
        return f"file:{self.folder}/storage"

    def release(self) -> None:
        """Delete everything of the test, and close all connections."""
        self.database.close()
        for path in sorted(self.folder.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
        _pool.append(self)


def record_as_sent(database: Database, envelopes: Iterable[Envelope]) -> None:
    """Record jobs as if broker and dispatcher had them. Those on record as sent stay as they are."""
    rows = []
    for envelope in envelopes:
        row = waiting_row(envelope)
        if envelope.queue != DISPATCHER_QUEUE:
            row |= {"state": State.QUEUED, "due_at": row["enqueued_at"]}
        rows.append(row)

    def record(connection: sa.Connection) -> None:
        connection.execute(database.insert_ignore(jobs), rows)
        # A unique job is on record before it is sent.
        sent = [row["id"] for row in rows if row["state"] == State.QUEUED]
        reserved = sa.and_(jobs.c.id.in_(sent), jobs.c.state == State.SCHEDULED)
        connection.execute(sa.update(jobs).where(reserved).values(state=State.QUEUED, due_at=jobs.c.enqueued_at))

    if rows:
        database.write(record)


def waiting_rows(database: Database) -> Sequence[Any]:
    """Rows of jobs that wait to be run, now or later."""
    select = sa.select(jobs).where(jobs.c.state.in_([State.QUEUED, *WAITING])).order_by(jobs.c.enqueued_at)
    return database.read(lambda connection: connection.execute(select).all())


def age(database: Database, by: timedelta) -> None:
    """Move every time on record about jobs so much into the past."""

    def move_times(connection: sa.Connection) -> None:
        for table in _JOB_TABLES:
            times = [column for column in table.columns if isinstance(column.type, UtcDateTime)]
            for row in connection.execute(sa.select(*table.primary_key.columns, *times)).all():
                values = row._mapping
                this_row = sa.and_(*(column == values[column] for column in table.primary_key.columns))
                change = {column.name: values[column] - by for column in times if values[column] is not None}
                if change:
                    connection.execute(sa.update(table).where(this_row).values(**change))

    database.write(move_times)


def take_outbox(target: Session | scoped_session[Any] | sa.Connection | str) -> list[Envelope]:
    """Delete, in a transaction, the rows of the outbox that it sees; return their envelopes in order."""
    if isinstance(target, str):
        from penstock.producers.contrib.django.testing import take_outbox as take

        return take(target)
    if not isinstance(target, sa.Connection):
        target.flush()
    rows = target.execute(sa.select(outbox).order_by(outbox.c.position)).all()
    if rows:
        target.execute(sa.delete(outbox).where(outbox.c.position.in_([row.position for row in rows])))
    return [Envelope(row.queue, row.priority, json.loads(row.headers), bytes(row.body)) for row in rows]


def admit(database: Database, envelopes: Sequence[Envelope]) -> list[Envelope]:
    """Record jobs as the dispatcher does. Returns those that no other job stands for."""
    if not envelopes:
        return []
    now = datetime.now(UTC)
    admissions = database.write(lambda connection: enter_jobs(connection, database, envelopes, now))
    return [envelope for envelope, admission in zip(envelopes, admissions, strict=True) if admission.created]
