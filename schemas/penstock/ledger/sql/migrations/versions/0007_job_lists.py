"""Lists of jobs: their indexes, tags, and terms. On PostgreSQL `build_indexes` makes the indexes, without a lock."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from penstock.ledger.sql.types import UtcDateTime

revision = "0007"
down_revision = "0006"

_FAILED = "state IN ('dead', 'discarded', 'cancelled')"
INDEXES: tuple[tuple[tuple[str, ...], str | None], ...] = (
    (("enqueued_at", "id"), None),
    (("kind", "enqueued_at", "id"), None),
    (("tenant", "enqueued_at", "id"), "tenant IS NOT NULL"),
    (("state", "enqueued_at", "id"), "state NOT IN ('succeeded', 'running')"),
    (("state", "finished_at", "id"), _FAILED),
)


def upgrade() -> None:
    op.create_table(
        "penstock_job_terms",
        sa.Column("term", sa.String(32), nullable=False),
        sa.Column("enqueued_at", UtcDateTime(), nullable=False),
        sa.Column("job_id", sa.String(128), nullable=False),
        sa.PrimaryKeyConstraint("term", "enqueued_at", "job_id", name="pk_penstock_job_terms"),
    )
    op.create_index("ix_penstock_job_terms_job_id", "penstock_job_terms", ["job_id"])
    op.add_column("penstock_jobs", sa.Column("tags", sa.String(2000)))
    if op.get_context().dialect.name == "postgresql":
        return  # `build_indexes` makes them after the transaction
    for columns, condition in INDEXES:
        where = None if condition is None else sa.text(condition)
        op.create_index(f"ix_penstock_jobs_{'_'.join(columns)}", "penstock_jobs", list(columns), sqlite_where=where)


def downgrade() -> None:
    for columns, _ in INDEXES:
        op.drop_index(f"ix_penstock_jobs_{'_'.join(columns)}", "penstock_jobs")
    op.drop_column("penstock_jobs", "tags")
    op.drop_table("penstock_job_terms")
