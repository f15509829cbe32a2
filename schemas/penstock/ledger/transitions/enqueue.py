"""Inserting jobs, and admission of unique ones: the ledger decides which job holds a key, in the same transaction.

The insertion of a unique job locks the row of its key, so of several at once one is first. Nothing releases a key: the
job that took it last holds it as long as its state says so. So workers and outcomes need not know about keys.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from penstock.ledger.rows.arrows import Arrow, fan
from penstock.ledger.rows.ended import final_columns
from penstock.ledger.rows.jobs import Row, reserved, waiting, waiting_row
from penstock.ledger.rows.jobs.terms import delete_terms, record_terms, replace_terms
from penstock.ledger.rows.keys import kind_name
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import jobs, unique_keys
from penstock.ledger.transitions.cancel import cancel_waiting
from penstock.schemas.jobs.kind import DISPATCHER_QUEUE, registry
from penstock.schemas.jobs.unique_policy import UNENDED, Unique
from penstock.schemas.states import WAITING, State
from penstock.schemas.wire.codec import HEADER, Envelope

ARROWS = (
    Arrow(None, State.SCHEDULED, "entered"),
    Arrow(None, State.CANCELLED, "replaced within its batch"),
    *fan((State.SCHEDULED, State.QUEUED, State.RETRYING), (State.CANCELLED,), "replaced"),
    Arrow(State.SCHEDULED, State.SCHEDULED, "debounced"),
    Arrow(State.SCHEDULED, None, "refused by a full queue"),
    *fan((State.CANCELLED,), tuple(sorted(WAITING)), "restored: the job that replaced it was refused"),
)


@dataclass(frozen=True, slots=True)
class Admission:
    """Answer to a job that requests its key.

    Attributes:
        job_id, queue: of the job that counts from now on: its own, or the one that holds the key.
        created: whether a job of its own was inserted.
        refused: the policy is `reject`, and `job_id` holds the key.
    """

    job_id: str
    queue: str
    created: bool
    refused: bool = False


def enter(
    connection: sa.Connection,
    database: Database,
    envelopes: Iterable[Envelope],
    now: datetime,
    reserved: datetime | None = None,
) -> list[Admission]:
    """Insert jobs in a transaction of the caller's, for the dispatcher to send; each unique one if its key allows it.

    A unique kind's job without a key, as an unmodified Celery client sends it, is inserted without a check.

    Arguments:
        reserved: end of the reservation of those that are not unique, for a caller that sends them after the
            transaction.
    """
    envelopes = list(envelopes)
    requested = [(envelope, policy) for envelope in envelopes if (policy := _policy(envelope)) is not None]
    rows = [waiting_row(envelope, reserved) for envelope in envelopes if _policy(envelope) is None]
    if rows:
        database.execute_many(connection, database.insert_ignore(jobs), rows)
        record_terms(connection, database, rows)
    entered = (Admission(row["id"], row["queue"], True) for row in rows)
    admitted = iter(Admissions.admit(connection, database, requested, now, now).answers if requested else ())
    return [next(entered if _policy(envelope) is None else admitted) for envelope in envelopes]


def _policy(envelope: Envelope) -> Unique | None:
    kind = registry.find(envelope.kind)
    return None if kind is None or ours(envelope).get("key") is None else kind.unique


def ours(envelope: Envelope) -> dict[str, Any]:
    """Our header; empty if there is none."""
    header = envelope.headers.get(HEADER)
    return header if isinstance(header, dict) else {}


@dataclass(slots=True)
class Key:
    """Row of a key, and its new values.

    Attributes:
        before: id of the job that held it before; None: no job did.
    """

    job_id: str
    held_until: datetime | None
    due_at: datetime | None
    before: str | None


@dataclass(slots=True)
class _Known:
    state: str
    queue: str
    due_at: datetime | None
    fence: int


class Admissions:
    """Decides about the keys of a batch in one transaction, in the order of the requests.

    Attributes:
        answers: an answer for each request.
        new: rows of the jobs that were inserted, by id.
        replaced: jobs that were cancelled for another one, as they were.
        keys: by the id of their row.
    """

    def __init__(self, now: datetime, due_at: datetime) -> None:
        self.answers: list[Admission] = []
        self.new: dict[str, Row] = {}
        self.replaced: dict[str, _Known] = {}
        self.keys: dict[str, Key] = {}
        self._rows: dict[str, Row] = {}
        self._moved: dict[str, Row] = {}
        self._errors: dict[str, str] = {}
        self._known: dict[str, _Known] = {}
        self._now, self._due_at = now, due_at

    @classmethod
    def admit(
        cls,
        connection: sa.Connection,
        database: Database,
        requested: Sequence[tuple[Envelope, Unique]],
        now: datetime,
        due_at: datetime,
    ) -> Admissions:
        """Decide, and write the decisions.

        Arguments:
            due_at: for the new jobs that have no time of their own.

        Raises:
            UndecodableMessage: an envelope cannot be kept.
        """
        deciding = cls(now, due_at)
        deciding._rows = {envelope.id: waiting(envelope) for envelope, _ in requested}  # first: it checks them
        deciding._lock(connection, database, requested)
        deciding.answers = [deciding._decide(envelope, policy) for envelope, policy in requested]
        deciding._write(connection, database)
        return deciding

    def _lock(
        self, connection: sa.Connection, database: Database, requested: Sequence[tuple[Envelope, Unique]]
    ) -> None:
        rows: dict[str, Row] = {}
        for envelope, _ in requested:
            header = ours(envelope)
            rows.setdefault(
                key_id(envelope.kind, header.get("tenant"), header["key"]),
                {
                    "kind": kind_name(envelope.kind),
                    "key": header["key"],
                    "tenant": header.get("tenant"),
                    "job_id": envelope.id,
                    "held_until": None,
                    "due_at": None,
                },
            )
        # An upsert that changes nothing locks an existing row. It runs in order, so that two batches cannot wait for
        # each other. MySQL's INSERT IGNORE would take a shared lock first, and two transactions upgrading it would
        # deadlock.
        entries = [{"id": id, **rows[id]} for id in sorted(rows)]
        connection.execute(database.upsert(unique_keys, keep=("job_id", "held_until", "due_at")), entries)
        key_rows = connection.execute(sa.select(unique_keys).where(database.among(unique_keys.c.id, list(rows)))).all()
        ids = sorted({row.job_id for row in key_rows} | {envelope.id for envelope, _ in requested})
        select = sa.select(jobs.c.id, jobs.c.state, jobs.c.queue, jobs.c.due_at, jobs.c.fence)
        select = select.where(database.among(jobs.c.id, ids)).order_by(jobs.c.id)
        if any(policy.policy in ("replace", "debounce") for _, policy in requested):
            select = database.locked(select)
        self._known = {
            row.id: _Known(row.state, row.queue, row.due_at, row.fence) for row in connection.execute(select)
        }
        for row in key_rows:
            fresh = row.job_id == rows[row.id]["job_id"] and row.job_id not in self._known
            self.keys[row.id] = Key(row.job_id, row.held_until, row.due_at, None if fresh else row.job_id)

    def _decide(self, envelope: Envelope, policy: Unique) -> Admission:
        header = ours(envelope)
        key = self.keys[key_id(envelope.kind, header.get("tenant"), header["key"])]
        if (own := self._known.get(envelope.id)) is not None:
            return Admission(envelope.id, own.queue, False)  # a call repeated with the same id
        if self._is_held(key, envelope.id, policy):
            holder = self._known.get(key.job_id)
            queue = holder.queue if holder is not None else envelope.queue
            if policy.policy in ("reject", "existing"):
                return Admission(key.job_id, queue, False, refused=policy.policy == "reject")
            assert holder is not None  # a missing holder cannot be in a waiting state
            if policy.quiet is not None and self._is_untouched(key, holder):
                return self._move(envelope, policy, key, holder)
            self._replace(key.job_id, holder, envelope.id)
        return self._create(envelope, policy, key)

    def _is_held(self, key: Key, asking: str, policy: Unique) -> bool:
        if key.job_id == asking:
            return False  # no job had it
        holder = self._known.get(key.job_id)
        in_time = key.held_until is not None and key.held_until > self._now
        if holder is None:  # not on record any more: it ended long ago, and only a long period outlives that
            return policy.hold is not None and in_time and State.SUCCEEDED in policy.states
        if holder.state not in policy.states:
            return False
        # No held_until: enqueued before its kind got unique_for.
        return policy.hold is None or in_time or (key.held_until is None and holder.state in UNENDED)

    def _is_untouched(self, key: Key, holder: _Known) -> bool:
        """Whether a debounced job waits as it was put off. If not, a dispatcher may be sending it, or a retry waits."""
        return (
            holder.state == State.SCHEDULED and key.due_at == holder.due_at and (holder.due_at or self._now) > self._now
        )

    def _create(self, envelope: Envelope, policy: Unique, key: Key) -> Admission:
        row = self._rows[envelope.id]
        if policy.quiet is not None:
            row["due_at"] = self._now + policy.quiet
        elif envelope.queue != DISPATCHER_QUEUE:
            row["due_at"] = self._due_at
        self.new[envelope.id] = row
        self._known[envelope.id] = _Known(State.SCHEDULED, row["queue"], row["due_at"], 0)
        key.job_id, key.due_at = envelope.id, row["due_at"]
        key.held_until = None if policy.hold is None else self._now + policy.hold
        return Admission(envelope.id, row["queue"], True)

    def _move(self, envelope: Envelope, policy: Unique, key: Key, holder: _Known) -> Admission:
        assert policy.quiet is not None
        due_at = self._now + policy.quiet
        # The fence rises, so that a copy that was sent after all is refused.
        fence = holder.fence if key.job_id in self.new else holder.fence + 2
        row = {**self._rows[envelope.id], "id": key.job_id, "due_at": due_at, "fence": fence}
        if key.job_id in self.new:
            self.new[key.job_id] = row
        else:
            self._moved[key.job_id] = row
        holder.due_at, holder.queue = due_at, row["queue"]
        key.due_at = due_at
        return Admission(key.job_id, row["queue"], False)

    def _replace(self, job_id: str, holder: _Known, by: str) -> None:
        error = f"replaced by job {by}"
        if job_id in self.new:  # of the same batch
            self.new[job_id].update(final_columns(State.CANCELLED, self._now, error=error))
        else:
            self.replaced[job_id] = _Known(holder.state, holder.queue, holder.due_at, holder.fence)
            self._errors[job_id] = error
            self._moved.pop(job_id, None)
        holder.state = State.CANCELLED

    def _write(self, connection: sa.Connection, database: Database) -> None:
        for job_id, error in self._errors.items():
            cancel_waiting(connection, database, [job_id], self._now, counted=False, error=error)
        for job_id, row in self._moved.items():
            connection.execute(sa.update(jobs).where(jobs.c.id == job_id).values(row))
        if self._moved:
            replace_terms(connection, database, sorted(self._moved))
        if self.new:
            database.execute_many(connection, database.insert(jobs), list(self.new.values()))
            record_terms(connection, database, self.new.values())
        changed = [
            {"b_id": id, "b_job_id": key.job_id, "b_held_until": key.held_until, "b_due_at": key.due_at}
            for id, key in self.keys.items()
            if key.job_id in self.new or key.job_id in self._moved
        ]
        if changed:
            database.execute_many(connection, _TAKE, changed)

    def reserved_ids(self) -> list[str]:
        """Ids of the inserted jobs that are reserved for the caller, to send them."""
        return [job_id for job_id, row in self.new.items() if row["due_at"] == self._due_at]

    def give_back(self, connection: sa.Connection, database: Database, full_queue: str | None) -> None:
        """Make jobs that could not be sent due now, for the dispatcher. Those of a full queue are deleted instead, with
        all that their insertion changed."""
        if full_queue is not None:
            refused = {job_id for job_id in self.reserved_ids() if self.new[job_id]["queue"] == full_queue}
            for id, key in sorted(self.keys.items()):
                if key.job_id in refused:
                    _release_key(connection, id, key)
            self._restore(connection, refused)
            connection.execute(sa.delete(jobs).where(reserved(database, sorted(refused), self._due_at)))
            delete_terms(connection, database, sorted(refused))
        left = reserved(database, self.reserved_ids(), self._due_at)
        connection.execute(sa.update(jobs).where(left).values(due_at=self._now))

    def _restore(self, connection: sa.Connection, refused: set[str]) -> None:
        """Let jobs that were cancelled for refused ones wait again."""
        for key in self.keys.values():
            was = self.replaced.get(key.before or "")
            if was is None or key.job_id not in refused:
                continue
            # Its message may have been dropped as cancelled meanwhile, so it is sent again.
            waits = was.state in WAITING
            change = {
                "state": was.state if waits else State.SCHEDULED,
                "due_at": was.due_at if waits else self._now,
                "finished_at": None,
                "error": None,
            }
            replaced = (jobs.c.id == key.before, jobs.c.state == State.CANCELLED, jobs.c.finished_at == self._now)
            connection.execute(sa.update(jobs).where(*replaced).values(**change))


def _release_key(connection: sa.Connection, id: str, key: Key) -> None:
    """Let the previous job hold the key again."""
    unchanged = sa.and_(unique_keys.c.id == id, unique_keys.c.job_id == key.job_id)
    if key.before is None:
        connection.execute(sa.delete(unique_keys).where(unchanged))
    else:
        # A period that was over for the new job is over for the next one too.
        change = {"job_id": key.before, "held_until": None, "due_at": None}
        connection.execute(sa.update(unique_keys).where(unchanged).values(**change))


_TAKE = (
    sa.update(unique_keys)
    .where(unique_keys.c.id == sa.bindparam("b_id"))
    .values(
        job_id=sa.bindparam("b_job_id", type_=unique_keys.c.job_id.type),
        held_until=sa.bindparam("b_held_until", type_=unique_keys.c.held_until.type),
        due_at=sa.bindparam("b_due_at", type_=unique_keys.c.due_at.type),
    )
)


def key_id(kind: str, tenant: str | None, key: str) -> str:
    """Id of a key's row."""
    return hashlib.sha256(f"{kind_name(kind)}\n{'' if tenant is None else 't' + tenant}\n{key}".encode()).hexdigest()
