"""Erasing what the ledger and the storage hold of one person's jobs.

A job that has ended is deleted as a whole. If it has not, or only just, its message may still be on its way with all
its fields, and a worker would take it for new. So its row stays, emptied and cancelled, until such rows are pruned.
A running job is not erased, because its worker will write its outcome; cancel it first, or wait.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from penstock.ledger.retention.pruning import STORED_BY, delete_jobs, delete_results, may_have_stored
from penstock.ledger.rows import audit
from penstock.ledger.rows.arrows import fan
from penstock.ledger.rows.ended import announce_ends
from penstock.ledger.rows.jobs import UNSEEN
from penstock.ledger.rows.jobs.terms import delete_terms
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import (
    attempts,
    cancelled_keys,
    dead_letters,
    effects,
    jobs,
    outbox,
    steps,
    unique_keys,
    workflows,
)
from penstock.ledger.sql.tables import audit as log
from penstock.schemas.states import FINAL, State
from penstock.schemas.storage import Storage
from penstock.schemas.wire.codec import HEADER

_WAITS = (State.SCHEDULED, State.QUEUED, State.RETRYING)
ARROWS = (
    *fan((*_WAITS, State.SUCCEEDED, State.DISCARDED, State.DEAD), (State.CANCELLED,), "erased; a tombstone stays"),
    *fan((State.SUCCEEDED, State.DISCARDED, State.CANCELLED, State.DEAD), (None,), "erased"),
)

FIELDS = ("id", "key", "tenant")
"""What jobs can be chosen by."""

COUNTED = (
    "jobs",
    "tombstones",
    "attempts",
    "effects",
    "dead letters",
    "workflows",
    "steps",
    "results",
    "keys",
    "outbox",
)

BATCH = 500
_JUST_NOW = timedelta(hours=1)
"""How long after its end a second delivery of a job may come. As long as the shortest retention."""


@dataclass(slots=True)
class Erasure:
    """Result of an erasure, or of its dry run.

    Attributes:
        counts: of COUNTED. `jobs` are deleted, `tombstones` emptied; `results` are jobs whose results were looked for
            in the storage; `outbox` are rows there, of jobs that were not sent yet.
        running, failed: ids of jobs that are left: they run, or their stored result could not be deleted.
        log_emptied: False if SQLite's write-ahead log still has what was erased, because it was read all the time.
    """

    counts: Counter[str] = field(default_factory=Counter)
    running: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    log_emptied: bool = True


def erase(
    database: Database,
    where: Mapping[str, str],
    open_storage: Callable[[], Storage],
    *,
    actor: str,
    dry_run: bool = False,
) -> Erasure:
    """Erase the jobs that match all of `where`, and record it in the audit log.

    The log keeps the fields of the selection and hashes of their values, so that a question about a person whose
    key is known can be answered, and others learn nothing.

    Arguments:
        where: field (of FIELDS) to value; at least one.

    Raises:
        ValueError: the selection is empty or names another field. LedgerUnavailable: what came before is erased.
    """
    if not where or set(where) - set(FIELDS):
        raise ValueError(f"choose the jobs to erase by {', '.join(FIELDS)}")
    done = Erasure()
    if dry_run:
        _outboxed(database, where, done)
        for rows in _pages(database, where):
            _count(database, rows, done)
        _dead_letters(database, where, done, dry_run=True)
        _keys(database, where, done, dry_run=True)
        return done
    # First, so that an erasure that is cut short is on record too; counted up by each step.
    detail = {"where": {name: hashed(value) for name, value in where.items()}}
    line = database.write(lambda connection: audit.write(connection, actor=actor, act="erase", count=0, detail=detail))
    _outboxed(database, where, done, line)  # before the jobs: what is sent meanwhile is on record by then
    for rows in _pages(database, where):
        _erase(database, rows, open_storage, line, done)
    _dead_letters(database, where, done)
    _keys(database, where, done)
    if "key" in where:
        _hash_in_log(database, where["key"])
    done.log_emptied = database.empty_log()
    return done


def hashed(value: str) -> str:
    """A selection's value as the audit log keeps it."""
    return "sha256:" + hashlib.sha256(value.encode()).hexdigest()


def lines_since(database: Database, since: datetime) -> list[tuple[str, int]]:
    """The erasures since a time: id of the line in the audit log, and the jobs so far. It grows as they go on."""
    select = sa.select(log.c.id, log.c.count).where(log.c.act == "erase", log.c.at >= since).order_by(log.c.id)
    return [(row.id, row.count) for row in _read(database, select)]


def erased_among(database: Database, job_ids: Sequence[str], *, absent_too: bool) -> set[str]:
    """Ids, of at most BATCH jobs, whose rows were emptied by an erasure.

    Arguments:
        absent_too: count those without a row as well. Jobs of kinds that are not tracked never had one.
    """
    is_empty = sa.and_(jobs.c.state == State.CANCELLED, jobs.c.payload == UNSEEN)
    select = sa.select(jobs.c.id, is_empty.label("is_empty")).where(database.among(jobs.c.id, job_ids))
    rows = _read(database, select)
    empty = {row.id for row in rows if row.is_empty}
    return empty | (set(job_ids) - {row.id for row in rows}) if absent_too else empty


def _pages(database: Database, where: Mapping[str, str]) -> Iterator[Sequence[Any]]:
    columns = ("id", "state", "key", "tenant", "finished_at", *STORED_BY)
    after = ""
    while True:
        chosen = [jobs.c[name] == value for name, value in where.items()]
        select = sa.select(*(jobs.c[name] for name in columns)).where(*chosen, jobs.c.id > after)
        ordered = select.order_by(jobs.c.id).limit(BATCH)
        rows = _read(database, ordered)
        # Some databases take "A" and "a" for equal. These are two people.
        yield [row for row in rows if all(getattr(row, name) == value for name, value in where.items())]
        if len(rows) < BATCH:
            return
        after = rows[-1].id


def _count(database: Database, rows: Sequence[Any], done: Erasure) -> None:
    done.running += [row.id for row in rows if row.state == State.RUNNING]
    rows = [row for row in rows if row.state != State.RUNNING]
    ids = [row.id for row in rows]
    stay = sum(_stays(row, datetime.now(UTC)) for row in rows)
    done.counts.update({"jobs": len(rows) - stay, "tombstones": stay, "results": sum(map(may_have_stored, rows))})

    def count_parts(connection: sa.Connection) -> None:
        for name, column in _PARTS:
            select = sa.select(sa.func.count()).where(database.among(column, ids))
            done.counts[name] += connection.execute(select).scalar_one()

    if ids:
        database.read(count_parts)


_PARTS = (
    ("attempts", attempts.c.job_id),
    ("effects", effects.c.job_id),
    ("dead letters", dead_letters.c.id),
    ("workflows", workflows.c.id),
    ("steps", steps.c.workflow_id),
)


def _erase(
    database: Database, rows: Sequence[Any], open_storage: Callable[[], Storage], line: str, done: Erasure
) -> None:
    stored = [row for row in rows if may_have_stored(row) and row.state != State.RUNNING]
    failed = delete_results(stored, open_storage)
    ids = [row.id for row in rows if row.id not in failed]

    def erase_rows(connection: sa.Connection) -> tuple[Counter[str], list[str]]:
        now, counts = datetime.now(UTC), Counter[str]()
        columns = (jobs.c.id, jobs.c.state, jobs.c.finished_at, jobs.c.fence)
        select = sa.select(*columns).where(database.among(jobs.c.id, ids)).order_by(jobs.c.id)
        locked = connection.execute(database.locked(select)).all()
        running = [row.id for row in locked if row.state == State.RUNNING]
        left = [row for row in locked if row.state != State.RUNNING]
        for name, column in _PARTS:
            part = sa.delete(column.table).where(database.among(column, [row.id for row in left]))
            counts[name] += connection.execute(part).rowcount
        delete_terms(connection, database, [row.id for row in left])
        stay = [row for row in left if _stays(row, now)]
        if stay:
            where = sa.update(jobs).where(database.among(jobs.c.id, [row.id for row in stay]))
            connection.execute(where.values(**_EMPTY, finished_at=now))
            announce_ends(connection, database, [row.id for row in stay])
        gone = [row.id for row in left if not _stays(row, now)]
        delete_jobs(connection, database, gone)
        counts.update({"jobs": len(gone), "tombstones": len(stay)})
        # Without the ids, as every other act enters them: this line says that there were jobs, and not which.
        connection.execute(sa.update(log).where(log.c.id == line).values(count=log.c.count + len(left)))
        return counts, running

    if ids:
        counts, running = database.write(erase_rows)
        done.counts += counts
        done.running += running
    done.counts["results"] += len(stored) - len(failed)
    done.failed += sorted(failed)


# All but the id, which is random, and what is needed to know the kind and to refuse the message.
_EMPTY: dict[str, Any] = {
    "state": State.CANCELLED,
    "payload": UNSEEN,
    "due_at": None,
    **dict.fromkeys(("embed", "key", "tenant", "traceparent", "expires_at", "worker", "result", "result_ref", "error")),
    **dict.fromkeys(("progress_done", "progress_total", "progress_note", "tags")),
}


def _stays(row: Any, now: datetime) -> bool:
    return row.state not in FINAL or row.finished_at is None or row.finished_at > now - _JUST_NOW


def _dead_letters(database: Database, where: Mapping[str, str], done: Erasure, *, dry_run: bool = False) -> None:
    """Erase dead letters without a job: messages that carry the id, key or tenant in a header."""
    after = ""
    column = dead_letters.c
    while True:
        orphans = sa.select(column.id, column.headers).where(
            column.id > after, column.headers.is_not(None), ~sa.exists().where(jobs.c.id == column.id)
        )
        select = orphans.order_by(column.id).limit(BATCH)
        rows = _read(database, select)
        ids = [row.id for row in rows if _is_meant(row, where)]
        if ids and not dry_run:
            _delete(database, column.id, ids)
        done.counts["dead letters"] += len(ids)
        if len(rows) < BATCH:
            return
        after = rows[-1].id


def _outboxed(database: Database, where: Mapping[str, str], done: Erasure, line: str | None = None) -> None:
    """Erase jobs in the outbox of this database: committed and not sent.

    Arguments:
        line: of the audit log; None: only count.
    """
    after = 0
    chosen = [outbox.c[name] == where[name] for name in ("id", "key") if name in where]
    columns = [outbox.c[name] for name in ("position", "id", "key", "headers")]
    while True:
        select = sa.select(*columns).where(*chosen, outbox.c.position > after).order_by(outbox.c.position).limit(BATCH)
        rows = _read(database, select)
        meant = [row.position for row in rows if _is_meant_there(row, where)]

        def delete_outboxed(connection: sa.Connection, meant: Sequence[int] = meant) -> None:
            connection.execute(sa.delete(outbox).where(outbox.c.position.in_(meant)))
            connection.execute(sa.update(log).where(log.c.id == line).values(count=log.c.count + len(meant)))

        if meant and line is not None:
            database.write(delete_outboxed)
        done.counts["outbox"] += len(meant)
        if len(rows) < BATCH:
            return
        after = rows[-1].position


def _is_meant_there(row: Any, where: Mapping[str, str]) -> bool:
    text = {"id": row.id, "key": row.key}
    if "tenant" in where:
        try:
            text["tenant"] = json.loads(row.headers)[HEADER].get("tenant")
        except (ValueError, LookupError, TypeError, AttributeError):
            return False  # headers that cannot be read name no tenant
    return all(text[name] == value for name, value in where.items())


def _is_meant(row: Any, where: Mapping[str, str]) -> bool:
    headers = json.loads(row.headers)
    ours = headers.get(HEADER)
    text = {**(ours if isinstance(ours, dict) else {}), "id": headers.get("id")}
    return all(text.get(name) == value or (name == "id" and row.id == value) for name, value in where.items())


def _keys(database: Database, where: Mapping[str, str], done: Erasure, *, dry_run: bool = False) -> None:
    """Erase the keys themselves. Held keys stay as long as one of the jobs is running."""
    if "key" not in where or "id" in where:
        return
    for table in (unique_keys, cancelled_keys):
        chosen = [table.c[name] == where[name] for name in ("key", "tenant") if name in where]
        select = sa.select(table.c.id, table.c.key, table.c.tenant).where(*chosen)
        rows = _read(database, select)
        ids = [row.id for row in rows if all(getattr(row, n) == where[n] for n in ("key", "tenant") if n in where)]
        if ids and not (table is unique_keys and done.running):
            done.counts["keys"] += len(ids)
            if not dry_run:
                _delete(database, table.c.id, ids)


def _hash_in_log(database: Database, key: str) -> None:
    """Replace the key in the audit log by its hash: earlier acts on the person's jobs stay on record."""
    quoted = json.dumps(key)
    select = sa.select(log.c.id, log.c.subject, log.c.detail)
    meant = select.where(sa.or_(log.c.subject == key, log.c.detail.contains(quoted, autoescape=True)))
    for row in _read(database, meant):
        change: dict[str, Any] = {"detail": row.detail.replace(quoted, json.dumps(hashed(key)))}
        if row.subject == key:
            change["subject"] = hashed(key)
        line = sa.update(log).where(log.c.id == row.id).values(**change)
        database.write(lambda connection, line=line: connection.execute(line))  # type: ignore[misc]


def _read(database: Database, select: sa.Select[Any]) -> Sequence[Any]:
    return database.read(lambda connection: connection.execute(select).all())


def _delete(database: Database, key: sa.Column[Any], ids: Sequence[str]) -> None:
    where = sa.delete(key.table).where(database.among(key, ids))
    database.write(lambda connection: connection.execute(where))
