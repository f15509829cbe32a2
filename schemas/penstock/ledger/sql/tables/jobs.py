"""The jobs, and what belongs to each of them."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from penstock.ledger.sql.tables.base import ID, NAME, metadata
from penstock.ledger.sql.types import LongerText, LongText, Text, UtcDateTime
from penstock.schemas.states import State

UNCOMMON_STATE = f"state NOT IN ('{State.SUCCEEDED}', '{State.RUNNING}')"
"""Almost all jobs have one of those two, and pass through both: an index without them costs their workers nothing."""
NOT_RUNNING = f"state <> '{State.RUNNING}'"
"""A job that is recorded when it starts gets its place in an index of lists at its end, once; few run at a time."""
ENDED_WITHOUT_SUCCESS = f"state IN ('{State.DEAD}', '{State.DISCARDED}', '{State.CANCELLED}')"
_WHERE = "where"


def _only(condition: str, *, sqlite: bool = True) -> dict[str, Any]:
    """Options of an index that holds only some rows. MySQL and MariaDB have no such index: theirs holds all.

    Arguments:
        sqlite: use it on SQLite, too; it finds such an index only for a query that has the condition word for word.
    """
    return {"info": {_WHERE: dict.fromkeys(("postgresql", "sqlite") if sqlite else ("postgresql",), condition)}}


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
    sa.Column("embed", LongText),  # callbacks, chain and so on of an unmodified Celery client
    sa.Column("key", Text(255)),
    sa.Column("tenant", Text(255)),
    sa.Column("traceparent", sa.String(64)),
    sa.Column("attempt", sa.Integer, nullable=False, default=0),  # number of the last attempt that started
    sa.Column("failures", sa.Integer, nullable=False, default=0),
    sa.Column("crashes", sa.Integer, nullable=False, default=0),
    sa.Column("fence", sa.BigInteger, nullable=False, default=0),  # rises with every claim
    sa.Column("worker", NAME),  # the worker that runs the job, or ran it last
    sa.Column("cancel_requested", sa.Boolean, nullable=False, default=False),
    sa.Column("enqueued_at", UtcDateTime, nullable=False),
    sa.Column("due_at", UtcDateTime),  # if queued: when it was sent, on the database's clock
    sa.Column("expires_at", UtcDateTime),
    sa.Column("started_at", UtcDateTime),  # of the last attempt
    sa.Column("finished_at", UtcDateTime),
    sa.Column("result", LongText),
    sa.Column("result_ref", Text(255)),  # key in the storage, if the result is too large for a row
    sa.Column("error", LongerText),  # of the last failed attempt, on one line
    sa.Column("progress_done", sa.BigInteger),
    sa.Column("progress_total", sa.BigInteger),
    sa.Column("progress_note", Text(255)),
    sa.Column("tags", Text(2000)),  # as JSON; in `penstock_job_terms`, too
    # Due jobs, those that run, and every count by state, but for those that have succeeded.
    sa.Index("ix_penstock_jobs_due", "state", "due_at", **_only(f"state <> '{State.SUCCEEDED}'", sqlite=False)),
    sa.Index("ix_penstock_jobs_keyed", "key", **_only("key IS NOT NULL")),
    # Lists, the newest first. Every version of a row costs an entry in each that includes it (docs/operating.md).
    sa.Index("ix_penstock_jobs_listed", "enqueued_at", "id", **_only(NOT_RUNNING)),
    sa.Index("ix_penstock_jobs_listed_kind", "kind", "enqueued_at", "id", **_only(NOT_RUNNING)),
    sa.Index(
        "ix_penstock_jobs_listed_tenant",
        *("tenant", "enqueued_at", "id"),
        **_only(f"tenant IS NOT NULL AND {NOT_RUNNING}"),
    ),
    sa.Index(None, "state", "enqueued_at", "id", **_only(UNCOMMON_STATE)),
    sa.Index(None, "state", "finished_at", "id", **_only(ENDED_WITHOUT_SUCCESS)),
)


@sa.event.listens_for(jobs, "before_create")
def _before_create(_table: sa.Table, connection: sa.Connection, **_options: Any) -> None:
    limit_indexes(connection.dialect.name)


def limit_indexes(dialect: str) -> None:
    """Give the indexes of jobs their conditions, before they are made in a database of this dialect.

    As options of `sa.Index` they would load the module of each dialect into every process: three megabytes.
    """
    for index in jobs.indexes:
        if (condition := index.info.get(_WHERE, {}).get(dialect)) is not None:
            index.dialect_kwargs[f"{dialect}_where"] = sa.text(condition)


job_terms = sa.Table(
    "penstock_job_terms",
    metadata,
    # Tags and searchable fields of jobs, as hashes: those of a term in the order of a list.
    sa.Column("term", sa.String(32), primary_key=True),
    sa.Column("enqueued_at", UtcDateTime, primary_key=True),  # of the job
    sa.Column("job_id", ID, primary_key=True),
    sa.Index(None, "job_id"),
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
    sa.Column("error", LongerText),
    sa.Column("traceback", LongText),
)

unique_keys = sa.Table(
    "penstock_unique_keys",
    metadata,
    # A hash of kind, tenant and key, since some databases treat "A" and "a" as equal. Its row is the lock of a key.
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("kind", NAME, nullable=False),
    sa.Column("key", Text(255), nullable=False),
    sa.Column("tenant", Text(255)),
    sa.Column("job_id", ID, nullable=False),  # the holder, as long as its state and `held_until` say so
    sa.Column("held_until", UtcDateTime),  # None: only the state counts
    sa.Column("due_at", UtcDateTime),  # set by debounce; a job with another due time was touched since
    sa.Index(None, "held_until"),
)

cancelled_keys = sa.Table(
    "penstock_cancelled_keys",
    metadata,
    # Cancelled keys of jobs that waited in the broker, unknown to the ledger. Whatever claims or keeps one looks here.
    sa.Column("id", sa.String(64), primary_key=True),  # a hash of the next three
    sa.Column("key", Text(255), nullable=False),
    sa.Column("kind", NAME),  # None: of every kind
    sa.Column("tenant", Text(255)),  # None: of every tenant
    sa.Column("cancelled_at", UtcDateTime, nullable=False),  # applies to jobs enqueued until then
    sa.Index(None, "key"),
    sa.Index(None, "cancelled_at"),
)

limit_waits = sa.Table(
    "penstock_limit_waits",
    metadata,
    sa.Column("job_id", ID, primary_key=True),
    sa.Column("slot", Text(255), nullable=False),  # the slot it waits for: the limit, and a hash of its share
    sa.Column("enqueued_at", UtcDateTime, nullable=False),  # the oldest comes first
    sa.Column("due_at", UtcDateTime, nullable=False),  # a job with another due time was touched since
    sa.Index(None, "slot", "enqueued_at", "job_id"),
)

held_jobs = sa.Table(
    "penstock_held_jobs",
    metadata,
    # Jobs that a worker did not know, held back for workers that do.
    sa.Column("job_id", ID, primary_key=True),
    sa.Column("fence", sa.BigInteger, nullable=False),  # a job with another fence was claimed since
    sa.Column("worker", NAME, nullable=False),  # the last one that did not know it
    sa.Column("reason", sa.String(32), nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
    sa.Column("since", UtcDateTime, nullable=False),  # on the database's clock, as the next two
    sa.Column("until", UtcDateTime, nullable=False),  # end of its grace
    sa.Column("due_at", UtcDateTime, nullable=False),  # a job with another due time was sent again, or touched
    sa.Index(None, "due_at"),
)

suspect_runs = sa.Table(
    "penstock_suspect_runs",
    metadata,
    # Jobs that run, or ran, in processes of their own, as their worker had crashed before.
    sa.Column("job_id", ID, primary_key=True),
    sa.Column("fence", sa.BigInteger, nullable=False),  # of the claim that ran so last
    sa.Column("deaths", sa.Integer, nullable=False),  # of workers meanwhile, which do not count as its crashes
)

effects = sa.Table(
    "penstock_effects",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),  # derived from job and key; sent to the provider
    sa.Column("job_id", ID, nullable=False),
    sa.Column("key", Text(255), nullable=False),
    sa.Column("fence", sa.BigInteger, nullable=False),  # of the claim that started it last
    sa.Column("begun_at", UtcDateTime, nullable=False),
    sa.Column("done_at", UtcDateTime),  # None: under way, or in doubt
    sa.Column("result", LongText),  # as JSON
    sa.Index(None, "job_id"),
)
