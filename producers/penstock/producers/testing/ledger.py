"""Ledger of a test: SQLite in a folder of its own, made when it is first needed. Needs penstock[sql]."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session, scoped_session

from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import (
    metadata,
    outbox,
)
from penstock.ledger.transitions.enqueue import enter as enter_jobs
from penstock.schemas.wire.codec import Envelope

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
    """Record jobs as the dispatcher does. Returns those whose key no other job holds."""
    if not envelopes:
        return []
    now = datetime.now(UTC)
    admissions = database.write(lambda connection: enter_jobs(connection, database, envelopes, now))
    return [envelope for envelope, admission in zip(envelopes, admissions, strict=True) if admission.created]
