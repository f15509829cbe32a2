"""The first tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from penstock.ledger.sql.tables import OUTBOX_TRIGGER
from penstock.ledger.sql.types import LongBytes, LongText, UtcDateTime

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "penstock_api_keys",
        sa.Column("id", sa.String(16)),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("kinds", sa.Text()),
        sa.Column("queues", sa.Text()),
        sa.Column("tenants", sa.Text()),
        sa.Column("requests_per_second", sa.Float()),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("expires_at", UtcDateTime()),
        sa.Column("revoked_at", UtcDateTime()),
        sa.PrimaryKeyConstraint("id", name="pk_penstock_api_keys"),
    )
    op.create_table(
        "penstock_audit",
        sa.Column("id", sa.String(128)),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.Column("actor", sa.String(255), nullable=False),
        sa.Column("act", sa.String(32), nullable=False),
        sa.Column("subject_kind", sa.String(32), nullable=False),
        sa.Column("subject", sa.String(255)),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.Column("detail", LongText, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_penstock_audit"),
    )
    op.create_index("ix_penstock_audit_at", "penstock_audit", ["at"])
    op.create_index("ix_penstock_audit_subject", "penstock_audit", ["subject"])
    op.create_table(
        "penstock_audit_subjects",
        sa.Column("subject", sa.String(128)),
        sa.Column("audit_id", sa.String(128)),
        sa.PrimaryKeyConstraint("subject", "audit_id", name="pk_penstock_audit_subjects"),
    )
    op.create_table(
        "penstock_attempts",
        sa.Column("job_id", sa.String(128)),
        sa.Column("fence", sa.BigInteger(), autoincrement=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("worker", sa.String(128), nullable=False),
        sa.Column("started_at", UtcDateTime(), nullable=False),
        sa.Column("finished_at", UtcDateTime()),
        sa.Column("outcome", sa.String(16), nullable=False),
        sa.Column("error", sa.Text()),
        sa.Column("traceback", LongText),
        sa.PrimaryKeyConstraint("job_id", "fence", name="pk_penstock_attempts"),
    )
    op.create_table(
        "penstock_cancelled_keys",
        sa.Column("id", sa.String(64)),
        sa.Column("key", sa.String(255), nullable=False),
        sa.Column("kind", sa.String(128)),
        sa.Column("tenant", sa.String(255)),
        sa.Column("cancelled_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_penstock_cancelled_keys"),
    )
    op.create_index("ix_penstock_cancelled_keys_key", "penstock_cancelled_keys", ["key"])
    op.create_index("ix_penstock_cancelled_keys_cancelled_at", "penstock_cancelled_keys", ["cancelled_at"])
    op.create_table(
        "penstock_dead_letters",
        sa.Column("id", sa.String(128)),
        sa.Column("kind", sa.String(128)),
        sa.Column("queue", sa.String(128), nullable=False),
        sa.Column("reason", sa.String(32), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.String(32), nullable=False),
        sa.Column("headers", LongText),
        sa.Column("raw", LongBytes),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("replayed_at", UtcDateTime()),
        sa.Column("discarded_at", UtcDateTime()),
        sa.PrimaryKeyConstraint("id", name="pk_penstock_dead_letters"),
    )
    op.create_index(
        "ix_penstock_dead_letters_open",
        "penstock_dead_letters",
        ["replayed_at", "discarded_at", "created_at"],
    )
    op.create_index(
        "ix_penstock_dead_letters_fingerprint_created_at",
        "penstock_dead_letters",
        ["fingerprint", "created_at"],
    )
    op.create_table(
        "penstock_effects",
        sa.Column("id", sa.String(36)),
        sa.Column("job_id", sa.String(128), nullable=False),
        sa.Column("key", sa.String(255), nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("begun_at", UtcDateTime(), nullable=False),
        sa.Column("done_at", UtcDateTime()),
        sa.Column("result", LongText),
        sa.PrimaryKeyConstraint("id", name="pk_penstock_effects"),
    )
    op.create_index("ix_penstock_effects_job_id", "penstock_effects", ["job_id"])
    op.create_table(
        "penstock_firings",
        sa.Column("schedule", sa.String(128)),
        sa.Column("fire_at", UtcDateTime()),
        sa.Column("cause", sa.String(16), nullable=False),
        sa.Column("job_id", sa.String(128)),
        sa.Column("fired_at", UtcDateTime(), nullable=False),
        sa.Column("skipped", sa.String(32)),
        sa.PrimaryKeyConstraint("schedule", "fire_at", name="pk_penstock_firings"),
    )
    op.create_table(
        "penstock_jobs",
        sa.Column("id", sa.String(128)),
        sa.Column("kind", sa.String(128), nullable=False),
        sa.Column("queue", sa.String(128), nullable=False),
        sa.Column("priority", sa.String(8), nullable=False),
        sa.Column("delivery", sa.String(16), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("payload", LongText, nullable=False),
        sa.Column("embed", LongText),
        sa.Column("key", sa.String(255)),
        sa.Column("tenant", sa.String(255)),
        sa.Column("traceparent", sa.String(64)),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("crashes", sa.Integer(), nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("worker", sa.String(128)),
        sa.Column("cancel_requested", sa.Boolean(), nullable=False),
        sa.Column("enqueued_at", UtcDateTime(), nullable=False),
        sa.Column("due_at", UtcDateTime()),
        sa.Column("expires_at", UtcDateTime()),
        sa.Column("started_at", UtcDateTime()),
        sa.Column("finished_at", UtcDateTime()),
        sa.Column("result", LongText),
        sa.Column("result_ref", sa.String(255)),
        sa.Column("error", sa.Text()),
        sa.Column("progress_done", sa.BigInteger()),
        sa.Column("progress_total", sa.BigInteger()),
        sa.Column("progress_note", sa.String(255)),
        sa.PrimaryKeyConstraint("id", name="pk_penstock_jobs"),
    )
    op.create_index("ix_penstock_jobs_key", "penstock_jobs", ["key"])
    op.create_index("ix_penstock_jobs_state_due_at", "penstock_jobs", ["state", "due_at"])
    if not sa.inspect(op.get_bind()).has_table("penstock_outbox"):  # an application's may be here already
        _create_outbox()
    op.create_table(
        "penstock_requests",
        sa.Column("id", sa.String(64)),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("job_ids", LongText, nullable=False),
        sa.Column("begun_at", UtcDateTime(), nullable=False),
        sa.Column("status", sa.Integer()),
        sa.Column("answer", LongText),
        sa.PrimaryKeyConstraint("id", name="pk_penstock_requests"),
    )
    op.create_index("ix_penstock_requests_begun_at", "penstock_requests", ["begun_at"])
    op.create_table(
        "penstock_schedules",
        sa.Column("name", sa.String(128)),
        sa.Column("source", sa.String(8), nullable=False),
        sa.Column("module", sa.String(255)),
        sa.Column("rule", LongText, nullable=False),
        sa.Column("next_at", UtcDateTime()),
        sa.Column("due_at", UtcDateTime()),
        sa.Column("last_at", UtcDateTime()),
        sa.Column("last_job_id", sa.String(128)),
        sa.Column("waiting_at", UtcDateTime()),
        sa.Column("paused_at", UtcDateTime()),
        sa.Column("error", sa.Text()),
        sa.PrimaryKeyConstraint("name", name="pk_penstock_schedules"),
    )
    op.create_index("ix_penstock_schedules_due_at", "penstock_schedules", ["due_at"])
    op.create_index("ix_penstock_schedules_waiting_at", "penstock_schedules", ["waiting_at"])
    op.create_table(
        "penstock_steps",
        sa.Column("workflow_id", sa.String(128)),
        sa.Column("number", sa.Integer(), autoincrement=False),
        sa.Column("step", sa.String(128)),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("job_id", sa.String(128)),
        sa.Column("members", sa.Integer()),
        sa.Column("done", sa.Integer(), nullable=False),
        sa.Column("failed", sa.Integer(), nullable=False),
        sa.Column("due_at", UtcDateTime()),
        sa.Column("started_at", UtcDateTime()),
        sa.Column("finished_at", UtcDateTime()),
        sa.Column("error", sa.Text()),
        sa.Column("result", LongText),
        sa.PrimaryKeyConstraint("workflow_id", "number", "step", name="pk_penstock_steps"),
    )
    op.create_index("ix_penstock_steps_due_at", "penstock_steps", ["due_at"])
    op.create_index("ix_penstock_steps_job_id", "penstock_steps", ["job_id"])
    op.create_table(
        "penstock_unique_keys",
        sa.Column("id", sa.String(64)),
        sa.Column("kind", sa.String(128), nullable=False),
        sa.Column("key", sa.String(255), nullable=False),
        sa.Column("tenant", sa.String(255)),
        sa.Column("job_id", sa.String(128), nullable=False),
        sa.Column("held_until", UtcDateTime()),
        sa.Column("due_at", UtcDateTime()),
        sa.PrimaryKeyConstraint("id", name="pk_penstock_unique_keys"),
    )
    op.create_index("ix_penstock_unique_keys_held_until", "penstock_unique_keys", ["held_until"])
    op.create_table(
        "penstock_workers",
        sa.Column("name", sa.String(128)),
        sa.Column("engine", sa.String(16), nullable=False),
        sa.Column("host", sa.String(128), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("queues", sa.Text(), nullable=False),
        sa.Column("kinds", sa.Text(), nullable=False),
        sa.Column("started_at", UtcDateTime(), nullable=False),
        sa.Column("lease_until", UtcDateTime(), nullable=False),
        sa.Column("peak_memory_bytes", sa.BigInteger()),
        sa.Column("stopped_at", UtcDateTime()),
        sa.Column("ended", sa.String(32)),
        sa.PrimaryKeyConstraint("name", name="pk_penstock_workers"),
    )
    op.create_table(
        "penstock_workflows",
        sa.Column("id", sa.String(128)),
        sa.Column("kind", sa.String(128), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("definition", sa.String(32), nullable=False),
        sa.Column("graph", LongText, nullable=False),
        sa.Column("ends_as", sa.String(16)),
        sa.Column("undo", sa.Boolean(), nullable=False),
        sa.Column("started_at", UtcDateTime(), nullable=False),
        sa.Column("finished_at", UtcDateTime()),
        sa.Column("error", sa.Text()),
        sa.PrimaryKeyConstraint("id", name="pk_penstock_workflows"),
    )
    op.create_index("ix_penstock_workflows_state_id", "penstock_workflows", ["state", "id"])


def _create_outbox() -> None:
    op.create_table(
        "penstock_limit_waits",
        sa.Column("job_id", sa.String(128)),
        sa.Column("slot", sa.String(255), nullable=False),
        sa.Column("enqueued_at", UtcDateTime(), nullable=False),
        sa.Column("due_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", name="pk_penstock_limit_waits"),
    )
    columns = ["slot", "enqueued_at", "job_id"]
    op.create_index(f"ix_penstock_limit_waits_{'_'.join(columns)}", "penstock_limit_waits", columns)
    op.create_table(
        "penstock_outbox",
        sa.Column("position", sa.BigInteger().with_variant(sa.Integer(), "sqlite")),
        sa.Column("id", sa.String(128), nullable=False),
        sa.Column("kind", sa.String(128), nullable=False),
        sa.Column("queue", sa.String(128), nullable=False),
        sa.Column("priority", sa.String(8), nullable=False),
        sa.Column("key", sa.String(255)),
        sa.Column("track", sa.Boolean(), nullable=False),
        sa.Column("policy", sa.Text()),
        sa.Column("headers", LongText, nullable=False),
        sa.Column("body", LongBytes, nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("taken_by", sa.String(36)),
        sa.Column("taken_until", UtcDateTime()),
        sa.PrimaryKeyConstraint("position", name="pk_penstock_outbox"),
    )
    op.create_index("ix_penstock_outbox_key_position", "penstock_outbox", ["key", "position"])
    if op.get_context().dialect.name == "postgresql":
        for statement in OUTBOX_TRIGGER:
            op.execute(statement)


def downgrade() -> None:
    op.drop_table("penstock_workflows")
    op.drop_table("penstock_workers")
    op.drop_table("penstock_unique_keys")
    op.drop_table("penstock_steps")
    op.drop_table("penstock_schedules")
    op.drop_table("penstock_requests")
    op.drop_table("penstock_outbox")
    op.drop_table("penstock_limit_waits")
    if op.get_context().dialect.name == "postgresql":
        op.execute("DROP FUNCTION penstock_outbox_notify()")
    op.drop_table("penstock_jobs")
    op.drop_table("penstock_firings")
    op.drop_table("penstock_effects")
    op.drop_table("penstock_dead_letters")
    op.drop_table("penstock_cancelled_keys")
    op.drop_table("penstock_audit_subjects")
    op.drop_table("penstock_audit")
    op.drop_table("penstock_attempts")
    op.drop_table("penstock_api_keys")
