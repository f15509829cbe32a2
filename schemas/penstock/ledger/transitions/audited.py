"""What a person asks of jobs that have not ended: to cancel them, or to run them at another time. All is audited."""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa

from penstock.ledger.rows import audit
from penstock.ledger.sql.database import Database
from penstock.ledger.transitions import cancel as keys
from penstock.ledger.transitions.revive import cancel as cancel


def cancel_key(
    database: Database, key: str, *, actor: str, kind: str | None = None, tenant: str | None = None
) -> list[str]:
    """`keys.cancel_key`, audited as one act."""
    detail = _chosen(key, kind, tenant)
    entry = audit.Entry(database, actor=actor, act="cancel", detail=detail)

    def enter(connection: sa.Connection, ids: list[str]) -> None:
        if ids:
            entry.write(connection, ids)
        else:  # first, as it holds for what nobody has seen too
            entry.line = audit.write(connection, actor=actor, act="cancel", count=0, detail=detail)

    return keys.cancel_key(database, key, kind=kind, tenant=tenant, also=enter)


def reschedule(database: Database, job_id: str, due_at: datetime, *, actor: str) -> None:
    """`keys.reschedule`, audited."""

    def write(connection: sa.Connection) -> None:
        keys.reschedule(connection, database, job_id, due_at)
        audit.write(connection, actor=actor, act="reschedule", subject=job_id, detail={"due_at": due_at})

    database.write(write)


def reschedule_key(
    database: Database, key: str, due_at: datetime, *, actor: str, kind: str | None = None, tenant: str | None = None
) -> list[str]:
    """`keys.reschedule_all`, audited as one act."""

    def write(connection: sa.Connection) -> list[str]:
        ids = keys.reschedule_all(connection, database, key, due_at, kind=kind, tenant=tenant)
        detail = {**_chosen(key, kind, tenant), "due_at": due_at}
        audit.Entry(database, actor=actor, act="reschedule", detail=detail).write(connection, ids)
        return ids

    return database.write(write)


def _chosen(key: str, kind: str | None, tenant: str | None) -> dict[str, str]:
    chosen = {"key": key, "kind": kind, "tenant": tenant}
    return {name: value for name, value in chosen.items() if value is not None}
