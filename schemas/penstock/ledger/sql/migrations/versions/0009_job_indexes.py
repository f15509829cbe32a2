"""Indexes of jobs without those that run, or have succeeded; and indexes of the audit log, workflows and rates.

On PostgreSQL `build_indexes` makes those of jobs, without a lock.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"

_NOT_RUNNING = "state <> 'running'"
_OLD = {
    "key": (("key",), None),
    "state_due_at": (("state", "due_at"), None),
    "enqueued_at_id": (("enqueued_at", "id"), None),
    "kind_enqueued_at_id": (("kind", "enqueued_at", "id"), None),
    "tenant_enqueued_at_id": (("tenant", "enqueued_at", "id"), "tenant IS NOT NULL"),
}
_NEW = {
    "due": (("state", "due_at"), None),
    "keyed": (("key",), "key IS NOT NULL"),
    "listed": (("enqueued_at", "id"), _NOT_RUNNING),
    "listed_kind": (("kind", "enqueued_at", "id"), _NOT_RUNNING),
    "listed_tenant": (("tenant", "enqueued_at", "id"), f"tenant IS NOT NULL AND {_NOT_RUNNING}"),
}
_OTHERS = (
    ("penstock_audit", ("at", "id")),
    ("penstock_audit", ("actor", "at", "id")),
    ("penstock_audit", ("act", "at", "id")),
    ("penstock_workflows", ("kind", "id")),
    ("penstock_rates", ("kind", "span", "minute")),
    ("penstock_rates", ("queue", "span", "minute")),
)


def upgrade() -> None:
    for table, columns in _OTHERS:
        op.create_index(f"ix_{table}_{'_'.join(columns)}", table, list(columns))
    op.drop_index("ix_penstock_audit_at", "penstock_audit")
    _replace(_OLD, _NEW)


def downgrade() -> None:
    op.create_index("ix_penstock_audit_at", "penstock_audit", ["at"])
    for table, columns in _OTHERS:
        op.drop_index(f"ix_{table}_{'_'.join(columns)}", table)
    _replace(_NEW, _OLD)


def _replace(
    old: dict[str, tuple[tuple[str, ...], str | None]], new: dict[str, tuple[tuple[str, ...], str | None]]
) -> None:
    if op.get_context().dialect.name == "postgresql":
        return
    for name, (columns, condition) in new.items():
        where = None if condition is None else sa.text(condition)
        op.create_index(f"ix_penstock_jobs_{name}", "penstock_jobs", list(columns), sqlite_where=where)
    for name in old:
        op.drop_index(f"ix_penstock_jobs_{name}", "penstock_jobs")
