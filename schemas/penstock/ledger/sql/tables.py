"""The ledger's tables. Only code that uses SQL imports this module; web backends that just enqueue do not."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import mysql
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator, TypeEngine

metadata = sa.MetaData(
    naming_convention={"ix": "ix_%(table_name)s_%(column_0_N_name)s", "pk": "pk_%(table_name)s"},
)


class _SqliteTime(sa.types.UserDefinedType[str]):
    """SQLite has no times of its own, only text. SQLAlchemy's DATETIME writes the same text more slowly."""

    cache_ok = True

    def get_col_spec(self, **_options: object) -> str:
        return "DATETIME"


class UtcDateTime(TypeDecorator[datetime]):
    """An aware time, kept in UTC with microseconds on every database.

    Raises:
        ValueError: when a naive datetime is bound: its zone can only be guessed.
    """

    impl = sa.DateTime
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name == "sqlite":
            return dialect.type_descriptor(_SqliteTime())
        if dialect.name == "mysql" or dialect.name == "mariadb":
            return dialect.type_descriptor(mysql.DATETIME(fsp=6))  # plain DATETIME drops the fraction
        return dialect.type_descriptor(sa.DateTime(timezone=True))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        if value is None:
            return None
        if value.tzinfo is not UTC:
            if value.tzinfo is None:
                raise ValueError(f"naive datetime {value!r}; give it a time zone")
            value = value.astimezone(UTC)
        if dialect.name == "sqlite":
            return value.isoformat(" ", "microseconds")[:26]  # without the offset, so that text sorts as time
        return value if dialect.name == "postgresql" else value.replace(tzinfo=None)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        time = datetime.fromisoformat(value) if isinstance(value, str) else value
        return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


# MySQL's TEXT and BLOB end at 64 KiB; a payload may have 256 KiB.
LongText = sa.Text().with_variant(mysql.MEDIUMTEXT(), "mysql", "mariadb")
LongBytes = sa.LargeBinary().with_variant(mysql.MEDIUMBLOB(), "mysql", "mariadb")

ID, NAME = sa.String(128), sa.String(128)

jobs = sa.Table(
    "penstock_jobs",
    metadata,
    sa.Column("id", ID, primary_key=True),
    sa.Column("kind", NAME, nullable=False),
    sa.Column("queue", NAME, nullable=False),
    sa.Column("priority", sa.String(8), nullable=False),
    sa.Column("delivery", sa.String(16), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("payload", LongText, nullable=False),  # the fields as JSON
    sa.Column("embed", LongText),  # what a stock client put beside them
    sa.Column("key", sa.String(255)),
    sa.Column("tenant", sa.String(255)),
    sa.Column("traceparent", sa.String(64)),
    sa.Column("attempt", sa.Integer, nullable=False, default=0),  # number of the last one begun
    sa.Column("failures", sa.Integer, nullable=False, default=0),
    sa.Column("crashes", sa.Integer, nullable=False, default=0),
    sa.Column("fence", sa.BigInteger, nullable=False, default=0),  # rises with every claim
    sa.Column("worker", NAME),  # who runs it, or ran it last
    sa.Column("cancel_requested", sa.Boolean, nullable=False, default=False),
    sa.Column("enqueued_at", UtcDateTime, nullable=False),
    sa.Column("due_at", UtcDateTime),  # of a queued one: when it was sent, on the database's clock
    sa.Column("expires_at", UtcDateTime),
    sa.Column("started_at", UtcDateTime),  # of the last attempt
    sa.Column("finished_at", UtcDateTime),
    sa.Column("result", LongText),
    sa.Column("result_ref", sa.String(255)),  # where it is in the storage, if it is too large to be here
    sa.Column("error", sa.Text),  # of the last failed attempt, in a line
    sa.Column("progress_done", sa.BigInteger),
    sa.Column("progress_total", sa.BigInteger),
    sa.Column("progress_note", sa.String(255)),
    sa.Index(None, "state", "due_at"),  # what is due, and every list by state
    sa.Index(None, "key"),
)

attempts = sa.Table(
    "penstock_attempts",
    metadata,
    sa.Column("job_id", ID, primary_key=True),
    sa.Column("fence", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("worker", NAME, nullable=False),
    sa.Column("started_at", UtcDateTime, nullable=False),
    sa.Column("finished_at", UtcDateTime),
    sa.Column("outcome", sa.String(16), nullable=False),
    sa.Column("error", sa.Text),
    sa.Column("traceback", LongText),
)

unique_keys = sa.Table(
    "penstock_unique_keys",
    metadata,
    # A hash of kind, tenant and key: some databases hold "A" and "a" for equal. Who decides about a key locks its row.
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("kind", NAME, nullable=False),
    sa.Column("key", sa.String(255), nullable=False),
    sa.Column("tenant", sa.String(255)),
    sa.Column("job_id", ID, nullable=False),  # whose it is, as long as that job's state and `held_until` say
    sa.Column("held_until", UtcDateTime),  # None: only the state says
    sa.Column("due_at", UtcDateTime),  # what was last put off until then, and waits untouched if its due time is this
    sa.Index(None, "held_until"),
)

cancelled_keys = sa.Table(
    "penstock_cancelled_keys",
    metadata,
    # Jobs that still waited in the broker, unseen, when their key was cancelled; whoever sees one looks here.
    sa.Column("id", sa.String(64), primary_key=True),  # a hash of the next three
    sa.Column("key", sa.String(255), nullable=False),
    sa.Column("kind", NAME),  # None: of every kind
    sa.Column("tenant", sa.String(255)),  # None: of every tenant
    sa.Column("cancelled_at", UtcDateTime, nullable=False),  # those enqueued until then
    sa.Index(None, "key"),
    sa.Index(None, "cancelled_at"),
)

dead_letters = sa.Table(
    "penstock_dead_letters",
    metadata,
    sa.Column("id", ID, primary_key=True),  # the job's, or a new one for bytes without
    sa.Column("kind", NAME),
    sa.Column("queue", NAME, nullable=False),
    sa.Column("reason", sa.String(32), nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
    sa.Column("fingerprint", sa.String(32), nullable=False),  # the same for letters that died of the same error
    sa.Column("headers", LongText),  # as JSON; for what never became a job
    sa.Column("raw", LongBytes),  # likewise
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("replayed_at", UtcDateTime),
    sa.Column("discarded_at", UtcDateTime),  # None, as replayed_at: it waits for somebody's decision
    sa.Index("ix_penstock_dead_letters_open", "replayed_at", "discarded_at", "created_at"),
    sa.Index(None, "fingerprint", "created_at"),
)

audit = sa.Table(
    "penstock_audit",
    metadata,
    sa.Column("id", ID, primary_key=True),
    sa.Column("at", UtcDateTime, nullable=False),
    sa.Column("actor", sa.String(255), nullable=False),  # who
    sa.Column("act", sa.String(32), nullable=False),
    sa.Column("subject_kind", sa.String(32), nullable=False),  # `job`, `dead letter`, `queue`, …
    sa.Column("subject", sa.String(255)),  # its id or name; None: many, or what the detail describes
    sa.Column("count", sa.Integer, nullable=False),  # of how many it was done to
    sa.Column("detail", LongText, nullable=False),  # JSON object; never holds what a payload does
    sa.Index(None, "at"),
    sa.Index(None, "subject"),
)

audit_subjects = sa.Table(
    "penstock_audit_subjects",
    metadata,
    sa.Column("subject", ID, primary_key=True),
    sa.Column("audit_id", ID, primary_key=True),  # of an act that was done to many
)

workers = sa.Table(
    "penstock_workers",
    metadata,
    sa.Column("name", NAME, primary_key=True),
    sa.Column("engine", sa.String(16), nullable=False),
    sa.Column("host", NAME, nullable=False),
    sa.Column("pid", sa.Integer, nullable=False),
    sa.Column("queues", sa.Text, nullable=False),  # JSON list
    sa.Column("kinds", sa.Text, nullable=False),  # JSON object: kind -> queue
    sa.Column("started_at", UtcDateTime, nullable=False),
    sa.Column("lease_until", UtcDateTime, nullable=False),  # holds for all jobs it runs
    sa.Column("peak_memory_bytes", sa.BigInteger),  # resident, as of the last heartbeat
    sa.Column("stopped_at", UtcDateTime),
    sa.Column("ended", sa.String(32)),  # how it died, such as SIGKILL, where somebody watched
)

limit_waits = sa.Table(
    "penstock_limit_waits",
    metadata,
    sa.Column("job_id", ID, primary_key=True),
    sa.Column("slot", sa.String(255), nullable=False),  # what it waits for: the limit, and a hash of its share
    sa.Column("enqueued_at", UtcDateTime, nullable=False),  # the oldest is the first
    sa.Column("due_at", UtcDateTime, nullable=False),  # it waits untouched if its due time is this
    sa.Index(None, "slot", "enqueued_at", "job_id"),
)

effects = sa.Table(
    "penstock_effects",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),  # made of job and key; what a provider is given
    sa.Column("job_id", ID, nullable=False),
    sa.Column("key", sa.String(255), nullable=False),
    sa.Column("fence", sa.BigInteger, nullable=False),  # of the claim that began it last
    sa.Column("begun_at", UtcDateTime, nullable=False),
    sa.Column("done_at", UtcDateTime),  # None: under way, or in doubt
    sa.Column("result", LongText),  # as JSON
    sa.Index(None, "job_id"),
)

schedules = sa.Table(
    "penstock_schedules",
    metadata,
    sa.Column("name", NAME, primary_key=True),
    sa.Column("source", sa.String(8), nullable=False),  # `file`, `code` or `made` (at run time)
    sa.Column("module", sa.String(255)),  # of `code`: the one that declares it
    sa.Column("rule", LongText, nullable=False),  # the definition, as JSON; what fires, wherever it came from
    sa.Column("next_at", UtcDateTime),  # None: it does not fire
    sa.Column("due_at", UtcDateTime),  # that and its jitter; None also while it is paused
    sa.Column("last_at", UtcDateTime),
    sa.Column("last_job_id", ID),
    sa.Column("waiting_at", UtcDateTime),  # the time whose job waits for the end of the last one
    sa.Column("paused_at", UtcDateTime),
    sa.Column("error", sa.Text),
    sa.Index(None, "due_at"),
    sa.Index(None, "waiting_at"),
)

firings = sa.Table(
    "penstock_firings",
    metadata,
    sa.Column("schedule", NAME, primary_key=True),
    sa.Column("fire_at", UtcDateTime, primary_key=True),  # unique with the schedule: nothing fires twice
    sa.Column("cause", sa.String(16), nullable=False, default="time"),  # or `run` or `backfill`, by a person
    sa.Column("job_id", ID),
    sa.Column("fired_at", UtcDateTime, nullable=False),
    sa.Column("skipped", sa.String(32)),  # why no job was made
)

workflows = sa.Table(
    "penstock_workflows",
    metadata,
    # Its job's: a workflow is a job that waits in the ledger until its last step has ended.
    sa.Column("id", ID, primary_key=True),
    sa.Column("kind", NAME, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("definition", sa.String(32), nullable=False),  # a hash of the graph
    sa.Column("graph", LongText, nullable=False),  # that it started with, as JSON
    sa.Column("ends_as", sa.String(16)),  # what it comes to when its steps have stopped: failed or cancelled
    sa.Column("undo", sa.Boolean, nullable=False, default=True),  # whether its compensations are run first
    sa.Column("started_at", UtcDateTime, nullable=False),
    sa.Column("finished_at", UtcDateTime),
    sa.Column("error", sa.Text),  # which step failed, and why; or why it rests
    sa.Index(None, "state", "id"),
)

steps = sa.Table(
    "penstock_steps",
    metadata,
    sa.Column("workflow_id", ID, primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),  # 0: the step; from 1: one of its jobs
    sa.Column("step", NAME, primary_key=True),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("job_id", ID),
    sa.Column("members", sa.Integer),  # how many jobs it has; None: one, or none
    sa.Column("done", sa.Integer, nullable=False, default=0),  # how many of them have ended
    sa.Column("failed", sa.Integer, nullable=False, default=0),  # and how many of these not well
    sa.Column("due_at", UtcDateTime),  # when the dispatcher is to look at it, on the database's clock
    sa.Column("started_at", UtcDateTime),
    sa.Column("finished_at", UtcDateTime),
    sa.Column("error", sa.Text),
    sa.Column("result", LongText),  # JSON object, of a step that waits: the `answer`, or what it is `otherwise`
    sa.Index(None, "due_at"),
    sa.Index(None, "job_id"),
)

api_keys = sa.Table(
    "penstock_api_keys",
    metadata,
    sa.Column("id", sa.String(16), primary_key=True),  # the part of a key that is no secret
    sa.Column("digest", sa.String(64), nullable=False),  # SHA-256 of the whole key, which is kept nowhere
    sa.Column("name", sa.String(200), nullable=False),
    sa.Column("kinds", sa.Text),  # JSON list of patterns; None: all
    sa.Column("queues", sa.Text),  # likewise
    sa.Column("tenants", sa.Text),  # JSON list of names; None: all, and jobs of none
    sa.Column("requests_per_second", sa.Float),  # None: as the settings say
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("expires_at", UtcDateTime),
    sa.Column("revoked_at", UtcDateTime),
)

requests = sa.Table(
    "penstock_requests",
    metadata,
    # Of clients of the gateway that sent an Idempotency-Key, so that repeating one is harmless.
    sa.Column("id", sa.String(64), primary_key=True),  # a hash of the caller and its key
    sa.Column("fingerprint", sa.String(64), nullable=False),  # of what was asked
    sa.Column("job_ids", LongText, nullable=False),  # JSON list, made before they are sent: a repetition has the same
    sa.Column("begun_at", UtcDateTime, nullable=False),
    sa.Column("status", sa.Integer),  # of the answer; None: there is none yet
    sa.Column("answer", LongText),
    sa.Index(None, "begun_at"),
)

OUTBOX_CHANNEL = "penstock_outbox"
OUTBOX_TRIGGER = (
    f"CREATE OR REPLACE FUNCTION penstock_outbox_notify() RETURNS trigger LANGUAGE plpgsql AS "
    f"$$ BEGIN PERFORM pg_notify('{OUTBOX_CHANNEL}', ''); RETURN NULL; END $$",
    "CREATE TRIGGER penstock_outbox_notify AFTER INSERT ON penstock_outbox "
    "FOR EACH STATEMENT EXECUTE FUNCTION penstock_outbox_notify()",
)
"""What PostgreSQL wakes the dispatcher with; sent with the commit."""


def _outbox(metadata: sa.MetaData) -> sa.Table:
    table = sa.Table(
        "penstock_outbox",
        metadata,
        # Given by the database, so that it rises from one transaction to the next: a key's jobs leave in this order.
        sa.Column("position", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("id", ID, nullable=False),  # the job's; not unique, so that a repeated call is harmless here too
        sa.Column("kind", NAME, nullable=False),
        sa.Column("queue", NAME, nullable=False),
        sa.Column("priority", sa.String(8), nullable=False),
        sa.Column("key", sa.String(255)),
        sa.Column("track", sa.Boolean, nullable=False),  # as its kind says; the dispatcher may not know it
        sa.Column("policy", sa.Text),  # JSON object; of a unique job
        sa.Column("headers", LongText, nullable=False),  # JSON object
        sa.Column("body", LongBytes, nullable=False),
        sa.Column("created_at", UtcDateTime, nullable=False),
        sa.Column("taken_by", sa.String(36)),  # which batch of a dispatcher's it is in
        sa.Column("taken_until", UtcDateTime),  # and until when, on this database's clock
        sa.Index(None, "key", "position"),
    )
    for statement in OUTBOX_TRIGGER:
        trigger = sa.DDL(statement)  # type: ignore[no-untyped-call]
        sa.event.listen(table, "after_create", trigger.execute_if(dialect="postgresql"))
    return table


outbox_metadata = sa.MetaData(naming_convention=metadata.naming_convention)
"""Of the outbox alone, for databases of users' own."""
outbox = _outbox(outbox_metadata)
_outbox(metadata)  # a ledger's database has one too
