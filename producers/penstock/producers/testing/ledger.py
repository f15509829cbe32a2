"""The ledger of a test: SQLite in a folder of its own, made when it is first needed. Needs penstock[sql]."""

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

_AGEING = (jobs, attempts, unique_keys, cancelled_keys, dead_letters, effects, workflows, steps)
"""What is about jobs. The leases of workers are left alone."""

_MEMORY = "/dev/shm"  # noqa: S108  # each has a folder of its own there
_empty: list[bytes] = []
_spare: list[LentLedger] = []


class LentLedger:
    """A database and the folder it is in. It is lent to one test after the other: SQLAlchemy has compiled its
    statements then, which takes longer than all they do."""

    def __init__(self) -> None:
        # A commit waits for the disk, and nobody needs it there.
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
    def borrow(cls) -> LentLedger:
        """One with empty tables."""
        _spare[:] = [one for one in _spare if one.pid == os.getpid()]
        lent = _spare.pop() if _spare else cls()
        if _empty:
            lent._file.write_bytes(_empty[0])
        else:
            metadata.create_all(lent.database.engine)
            lent.database.close()  # which brings all of it into the file
            _empty.append(lent._file.read_bytes())
        return lent

    def give_back(self) -> None:
        """Nothing of the test is kept, and no connection stays open."""
        self.database.close()
        for path in sorted(self.folder.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
        _spare.append(self)


def enter(database: Database, envelopes: Iterable[Envelope]) -> None:
    """Put on record what was sent, as if broker and dispatcher had it. What is on record as sent stays as it is."""
    rows = []
    for envelope in envelopes:
        row = waiting_row(envelope)
        if envelope.queue != DISPATCHER_QUEUE:
            row |= {"state": State.QUEUED, "due_at": row["enqueued_at"]}
        rows.append(row)

    def write(connection: sa.Connection) -> None:
        connection.execute(database.insert_ignore(jobs), rows)
        # A unique job is on record before it is sent.
        sent = [row["id"] for row in rows if row["state"] == State.QUEUED]
        mine = sa.and_(jobs.c.id.in_(sent), jobs.c.state == State.SCHEDULED)
        connection.execute(sa.update(jobs).where(mine).values(state=State.QUEUED, due_at=jobs.c.enqueued_at))

    if rows:
        database.write(write)


def waiting(database: Database) -> Sequence[Any]:
    """Rows of the jobs that wait to be run, now or later."""
    select = sa.select(jobs).where(jobs.c.state.in_([State.QUEUED, *WAITING])).order_by(jobs.c.enqueued_at)
    return database.read(lambda connection: connection.execute(select).all())


def age(database: Database, by: timedelta) -> None:
    """Let everything that is about jobs have been so much earlier."""

    def write(connection: sa.Connection) -> None:
        for table in _AGEING:
            times = [column for column in table.columns if isinstance(column.type, UtcDateTime)]
            for row in connection.execute(sa.select(*table.primary_key.columns, *times)).all():
                held = row._mapping
                mine = sa.and_(*(column == held[column] for column in table.primary_key.columns))
                change = {column.name: held[column] - by for column in times if held[column] is not None}
                if change:
                    connection.execute(sa.update(table).where(mine).values(**change))

    database.write(write)


def take_outbox(target: Session | scoped_session[Any] | sa.Connection | str) -> list[Envelope]:
    """What a transaction sees in the outbox, in order; taken out of it in that transaction."""
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
    """Enter jobs as the dispatcher does. Those of them that another job does not stand for."""
    if not envelopes:
        return []
    now = datetime.now(UTC)
    answers = database.write(lambda connection: enter_jobs(connection, database, envelopes, now))
    return [envelope for envelope, answer in zip(envelopes, answers, strict=True) if answer.created]
