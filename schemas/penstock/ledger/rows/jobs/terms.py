"""Terms of jobs: the tags and the searchable fields by which lists find them, each as a hash.

A hash has the same length for every tag and value, tells "A" from "a" on every database, and repeats no value of a
payload outside of its row.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import job_terms, jobs
from penstock.schemas.jobs.kind import Kind, registry

Row = Mapping[str, Any]

_READ = (jobs.c.id, jobs.c.kind, jobs.c.tags, jobs.c.payload, jobs.c.enqueued_at)


def tag_term(tag: str) -> str:
    """The term of a tag."""
    return _hash(["tag", tag])


def field_term(kind: str, field: str, value: str) -> str:
    """The term of a searchable field's value, as `text_of` writes it.

    Arguments:
        kind: its name, or an alias if it is known here.
    """
    declared = registry.find(kind)
    return _hash(["field", kind if declared is None else declared.name, field, value])


def text_of(value: Any) -> str | None:
    """A field's JSON value as people type it: text as it is, `42`, `true`; None: null, arrays and objects have none."""
    if isinstance(value, str):
        return value
    return None if value is None or isinstance(value, list | dict) else json.dumps(value)


def terms_of(kind: Kind | None, tags: Collection[str], payload: Mapping[str, Any]) -> set[str]:
    """The terms of a job."""
    terms = {tag_term(tag) for tag in tags}
    if kind is not None:
        texts = {field: text_of(value) for field, value in kind.searchable(payload).items()}
        terms |= {field_term(kind.name, field, text) for field, text in texts.items() if text is not None}
    return terms


def record_terms(connection: sa.Connection, database: Database, rows: Iterable[Row]) -> None:
    """Record the terms of jobs. Those on record already stay.

    Arguments:
        rows: of jobs, with their id, kind, tags, payload and enqueued_at.
    """
    if lines := [line for row in rows for line in _lines(row)]:
        database.execute_many(connection, database.insert_ignore(job_terms), lines)


def replace_terms(connection: sa.Connection, database: Database, ids: Sequence[str]) -> None:
    """Record the terms of jobs whose rows have changed, in place of those before."""
    delete_terms(connection, database, ids)
    rows = connection.execute(sa.select(*_READ).where(database.among(jobs.c.id, ids)))
    record_terms(connection, database, [row._asdict() for row in rows])


def delete_terms(connection: sa.Connection, database: Database, ids: Sequence[str]) -> None:
    """Delete the terms of jobs."""
    if ids:
        connection.execute(sa.delete(job_terms).where(database.among(job_terms.c.job_id, ids)))


def _lines(row: Row) -> list[Row]:
    tags, kind = row.get("tags"), registry.find(row["kind"])
    is_searched = kind is not None and bool(kind.search)
    if tags is None and not is_searched:
        return []  # as almost every job
    payload = json.loads(row["payload"]) if is_searched else None
    at: datetime = row["enqueued_at"]
    terms = terms_of(kind, json.loads(tags) if tags else (), payload if isinstance(payload, dict) else {})
    return [{"term": term, "enqueued_at": at, "job_id": row["id"]} for term in sorted(terms)]


def _hash(parts: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
