"""The ledger's tables. Only code that uses SQL imports this module; web backends that just enqueue do not."""

from __future__ import annotations

import sqlalchemy as sa

from penstock.ledger.sql.types import LongBytes, LongerText, LongText, Text, UtcDateTime

metadata = sa.MetaData(
    naming_convention={"ix": "ix_%(table_name)s_%(column_0_N_name)s", "pk": "pk_%(table_name)s"},
)

ID, NAME = Text(128), Text(128)

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
    sa.Index(None, "state", "due_at"),  # due jobs, and every list by state
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

dead_letters = sa.Table(
    "penstock_dead_letters",
    metadata,
    sa.Column("id", ID, primary_key=True),  # the job's id; a new one for bytes without an id
    sa.Column("kind", NAME),
    sa.Column("queue", NAME, nullable=False),
    sa.Column("reason", sa.String(32), nullable=False),
    sa.Column("detail", LongerText, nullable=False),
    sa.Column("fingerprint", sa.String(32), nullable=False),  # equal for dead letters with the same error
    sa.Column("headers", LongText),  # as JSON; for a message that never became a job
    sa.Column("raw", LongBytes),  # likewise
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("replayed_at", UtcDateTime),
    sa.Column("discarded_at", UtcDateTime),  # None, like replayed_at: it waits for a decision
    sa.Index("ix_penstock_dead_letters_open", "replayed_at", "discarded_at", "created_at"),
    sa.Index(None, "fingerprint", "created_at"),
)

audit = sa.Table(
    "penstock_audit",
    metadata,
    sa.Column("id", ID, primary_key=True),
    sa.Column("at", UtcDateTime, nullable=False),
    sa.Column("actor", Text(255), nullable=False),  # the person or program that acted
    sa.Column("act", sa.String(32), nullable=False),
    sa.Column("subject_kind", sa.String(32), nullable=False),  # `job`, `dead letter`, `queue`, …
    sa.Column("subject", Text(255)),  # its id or name; None: many subjects, or described in the detail
    sa.Column("count", sa.Integer, nullable=False),  # number of subjects
    sa.Column("detail", LongText, nullable=False),  # JSON object; never holds values of a payload
    sa.Index(None, "at"),
    sa.Index(None, "subject"),
)

audit_subjects = sa.Table(
    "penstock_audit_subjects",
    metadata,
    sa.Column("subject", ID, primary_key=True),
    sa.Column("audit_id", ID, primary_key=True),  # of an act with many subjects
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
    sa.Column("lease_until", UtcDateTime, nullable=False),  # covers all jobs that it runs
    sa.Column("peak_memory_bytes", sa.BigInteger),  # resident, as of the last heartbeat
    sa.Column("stopped_at", UtcDateTime),
    sa.Column("ended", sa.String(32)),  # exit reported by its supervisor, such as SIGKILL
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

schedules = sa.Table(
    "penstock_schedules",
    metadata,
    sa.Column("name", NAME, primary_key=True),
    sa.Column("source", sa.String(8), nullable=False),  # `file`, `code` or `made` (at run time)
    sa.Column("module", Text(255)),  # of `code`: the one that declares it
    sa.Column("rule", LongText, nullable=False),  # the definition as JSON; dispatchers fire by it alone
    sa.Column("next_at", UtcDateTime),  # None: it does not fire
    sa.Column("due_at", UtcDateTime),  # next_at plus jitter; None also while paused
    sa.Column("last_at", UtcDateTime),
    sa.Column("last_job_id", ID),
    sa.Column("waiting_at", UtcDateTime),  # the time whose job waits until the last one ends
    sa.Column("paused_at", UtcDateTime),
    sa.Column("error", LongerText),
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
    sa.Column("skipped", sa.String(32)),  # reason why no job was made
)

workflows = sa.Table(
    "penstock_workflows",
    metadata,
    # The id of its job: a workflow is a job that waits in the ledger until its last step has ended.
    sa.Column("id", ID, primary_key=True),
    sa.Column("kind", NAME, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("definition", sa.String(32), nullable=False),  # a hash of the graph
    sa.Column("graph", LongText, nullable=False),  # the graph that it started with, as JSON
    sa.Column("ends_as", sa.String(16)),  # its final state once its steps have stopped: failed or cancelled
    sa.Column("undo", sa.Boolean, nullable=False, default=True),  # whether compensations run first
    sa.Column("started_at", UtcDateTime, nullable=False),
    sa.Column("finished_at", UtcDateTime),
    sa.Column("error", LongerText),  # which step failed and why, or why the workflow rests
    sa.Index(None, "state", "id"),
)

steps = sa.Table(
    "penstock_steps",
    metadata,
    sa.Column("workflow_id", ID, primary_key=True),
    sa.Column(
        "number", sa.Integer, primary_key=True, autoincrement=False
    ),  # 0: the step itself; from 1: a job of its fan-out
    sa.Column("step", NAME, primary_key=True),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("job_id", ID),
    sa.Column("members", sa.Integer),  # number of jobs of a fan-out; None for other steps
    sa.Column("done", sa.Integer, nullable=False, default=0),  # number of those that have ended
    sa.Column("failed", sa.Integer, nullable=False, default=0),  # number of those that failed
    sa.Column("due_at", UtcDateTime),  # when the dispatcher looks at it next, on the database's clock
    sa.Column("started_at", UtcDateTime),
    sa.Column("finished_at", UtcDateTime),
    sa.Column("error", LongerText),
    sa.Column("result", LongText),  # JSON object of a step that waits: the `answer`, or its `otherwise`
    sa.Index(None, "due_at"),
    sa.Index(None, "job_id"),
)

api_keys = sa.Table(
    "penstock_api_keys",
    metadata,
    sa.Column("id", sa.String(16), primary_key=True),  # the public part of a key
    sa.Column("digest", sa.String(64), nullable=False),  # SHA-256 of the whole key, which is not stored
    sa.Column("name", Text(200), nullable=False),
    sa.Column("kinds", sa.Text),  # JSON list of patterns; None: all
    sa.Column("queues", sa.Text),  # likewise
    sa.Column("tenants", sa.Text),  # JSON list of names; None: all tenants, and jobs without one
    sa.Column("verbs", sa.Text),  # JSON list of `Verb`; None: all
    sa.Column("requests_per_second", sa.Float),  # None: as the settings say
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("expires_at", UtcDateTime),
    sa.Column("revoked_at", UtcDateTime),
)

requests = sa.Table(
    "penstock_requests",
    metadata,
    # Requests to the gateway with an Idempotency-Key, so that repeating one is harmless.
    sa.Column("id", sa.String(64), primary_key=True),  # a hash of the caller and its key
    sa.Column("fingerprint", sa.String(64), nullable=False),  # of the request
    sa.Column(
        "job_ids", LongText, nullable=False
    ),  # JSON list, made before sending, so that a repetition has the same ids
    sa.Column("begun_at", UtcDateTime, nullable=False),
    sa.Column("status", sa.Integer),  # of the response; None until there is one
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
"""Trigger by which PostgreSQL wakes the dispatcher at the commit."""


def _outbox(metadata: sa.MetaData) -> sa.Table:
    table = sa.Table(
        "penstock_outbox",
        metadata,
        # Assigned by the database, so it rises from one transaction to the next. Jobs of one key leave in this order.
        sa.Column("position", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("id", ID, nullable=False),  # of the job; not unique, so that a repeated call is harmless
        sa.Column("kind", NAME, nullable=False),
        sa.Column("queue", NAME, nullable=False),
        sa.Column("priority", sa.String(8), nullable=False),
        sa.Column("key", Text(255)),
        sa.Column("track", sa.Boolean, nullable=False),  # from its kind, which the dispatcher may not know
        sa.Column("policy", sa.Text),  # JSON object; of a unique job
        sa.Column("headers", LongText, nullable=False),  # JSON object
        sa.Column("body", LongBytes, nullable=False),
        sa.Column("created_at", UtcDateTime, nullable=False),
        sa.Column("taken_by", sa.String(36)),  # the dispatcher's batch that reserved it
        sa.Column("taken_until", UtcDateTime),  # end of that reservation, on this database's clock
        sa.Index(None, "key", "position"),
    )
    for statement in OUTBOX_TRIGGER:
        trigger = sa.DDL(statement)  # type: ignore[no-untyped-call]
        sa.event.listen(table, "after_create", trigger.execute_if(dialect="postgresql"))
    return table


outbox_metadata = sa.MetaData(naming_convention=metadata.naming_convention)
"""Tables of an outbox in a user's own database."""
outbox = _outbox(outbox_metadata)
_outbox(metadata)  # the ledger's database has an outbox, too
