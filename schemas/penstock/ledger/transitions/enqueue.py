"""Unique jobs: who holds a key is decided in the ledger, in the transaction that enters the job.

Whoever enters a unique job locks the row of its key, so of any number at once one is first. Nothing gives a key back:
the state of the job that took it last says whether it still holds it, so no worker and no outcome knows of keys.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from penstock.ledger.rows.ended import final_columns
from penstock.ledger.rows.jobs import Row, waiting, waiting_row
from penstock.ledger.rows.keys import kind_name
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import jobs, unique_keys
from penstock.ledger.transitions.cancel import cancel_waiting
from penstock.schemas.jobs.kind import DISPATCHER_QUEUE, registry
from penstock.schemas.jobs.unique_policy import UNENDED, Unique
from penstock.schemas.states import State
from penstock.schemas.wire.codec import HEADER, Envelope


@dataclass(frozen=True, slots=True)
class Admission:
    """What became of a job that asks for its key.

    Attributes:
        job_id, queue: of the job that stands for it from now on: its own, or the one that holds the key.
        created: whether a job of its own was entered.
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
    """Enter jobs in a transaction of the caller's, for the dispatcher to send; each unique one if its key allows it.

    One without a key, as a stock client sends it, is not asked for any.

    Arguments:
        reserved: until when those that are not unique are kept for the caller, who sends them after the transaction.
    """
    envelopes = list(envelopes)
    asked = [(envelope, policy) for envelope in envelopes if (policy := _policy(envelope)) is not None]
    rows = [waiting_row(envelope, reserved) for envelope in envelopes if _policy(envelope) is None]
    if rows:
        database.execute_many(connection, database.insert_ignore(jobs), rows)
    entered = (Admission(row["id"], row["queue"], True) for row in rows)
    admitted = iter(Admissions.of(connection, database, asked, now, now).answers if asked else ())
    return [next(entered if _policy(envelope) is None else admitted) for envelope in envelopes]


def _policy(envelope: Envelope) -> Unique | None:
    kind = registry.find(envelope.kind)
    return None if kind is None or ours(envelope).get("key") is None else kind.unique


def ours(envelope: Envelope) -> dict[str, Any]:
    """Our header; empty where there is none."""
    header = envelope.headers.get(HEADER)
    return header if isinstance(header, dict) else {}


@dataclass(slots=True)
class Key:
    """The row of a key, and what it becomes.

    Attributes:
        before: its job as it was found; None: nobody had it.
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
    """Decides about the keys of a batch in one transaction, in the order they ask.

    Attributes:
        answers: one for each that asked.
        new: rows of the jobs that were entered, by id.
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
    def of(
        cls,
        connection: sa.Connection,
        database: Database,
        asked: Sequence[tuple[Envelope, Unique]],
        now: datetime,
        due_at: datetime,
    ) -> Admissions:
        """Decide, and write it.

        Arguments:
            due_at: of the new jobs that have no time of their own.

        Raises:
            UndecodableMessage: an envelope cannot be kept.
        """
        deciding = cls(now, due_at)
        deciding._rows = {envelope.id: waiting(envelope) for envelope, _ in asked}  # first: it checks them
        deciding._lock(connection, database, asked)
        deciding.answers = [deciding._decide(envelope, policy) for envelope, policy in asked]
        deciding._write(connection, database)
        return deciding

    def _lock(self, connection: sa.Connection, database: Database, asked: Sequence[tuple[Envelope, Unique]]) -> None:
        rows: dict[str, Row] = {}
        for envelope, _ in asked:
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
        # An upsert that changes nothing locks a row that is there. In order, so that two batches cannot wait for each
        # other; MySQL's INSERT IGNORE would take a shared lock first, and two that raise it do.
        entries = [{"id": one, **rows[one]} for one in sorted(rows)]
        connection.execute(database.upsert(unique_keys, keep=("job_id", "held_until", "due_at")), entries)
        found = connection.execute(sa.select(unique_keys).where(database.among(unique_keys.c.id, list(rows)))).all()
        ids = sorted({row.job_id for row in found} | {envelope.id for envelope, _ in asked})
        select = sa.select(jobs.c.id, jobs.c.state, jobs.c.queue, jobs.c.due_at, jobs.c.fence)
        select = select.where(database.among(jobs.c.id, ids)).order_by(jobs.c.id)
        if any(policy.policy in ("replace", "debounce") for _, policy in asked):
            select = database.locked(select)
        self._known = {
            row.id: _Known(row.state, row.queue, row.due_at, row.fence) for row in connection.execute(select)
        }
        for row in found:
            fresh = row.job_id == rows[row.id]["job_id"] and row.job_id not in self._known
            self.keys[row.id] = Key(row.job_id, row.held_until, row.due_at, None if fresh else row.job_id)

    def _decide(self, envelope: Envelope, policy: Unique) -> Admission:
        header = ours(envelope)
        key = self.keys[key_id(envelope.kind, header.get("tenant"), header["key"])]
        if (own := self._known.get(envelope.id)) is not None:
            return Admission(envelope.id, own.queue, False)  # a call that is repeated with the id it gave
        if self._is_held(key, envelope.id, policy):
            holder = self._known.get(key.job_id)
            queue = holder.queue if holder is not None else envelope.queue
            if policy.policy in ("reject", "existing"):
                return Admission(key.job_id, queue, False, refused=policy.policy == "reject")
            assert holder is not None  # a job that is not there is not waiting
            if policy.quiet is not None and self._is_untouched(key, holder):
                return self._move(envelope, policy, key, holder)
            self._replace(key.job_id, holder, envelope.id)
        return self._create(envelope, policy, key)

    def _is_held(self, key: Key, asking: str, policy: Unique) -> bool:
        if key.job_id == asking:
            return False  # nobody had it
        holder = self._known.get(key.job_id)
        in_time = key.held_until is not None and key.held_until > self._now
        if holder is None:  # not on record any more, so it ended long ago; only a long period outlives that
            return policy.hold is not None and in_time and State.SUCCEEDED in policy.states
        if holder.state not in policy.states:
            return False
        # The job of a key without a period was enqueued when its kind had none yet.
        return policy.hold is None or in_time or (key.held_until is None and holder.state in UNENDED)

    def _is_untouched(self, key: Key, holder: _Known) -> bool:
        """Whether a debounced job waits as it was put off. Else a dispatcher may be sending it, or a retry waits."""
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
        # The fence rises: should a copy have been sent after all, it is refused.
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
            cancel_waiting(connection, database, [job_id], self._now, error=error)
        for job_id, row in self._moved.items():
            connection.execute(sa.update(jobs).where(jobs.c.id == job_id).values(row))
        if self.new:
            database.execute_many(connection, database.insert(jobs), list(self.new.values()))
        changed = [
            {"b_id": one, "b_job_id": key.job_id, "b_held_until": key.held_until, "b_due_at": key.due_at}
            for one, key in self.keys.items()
            if key.job_id in self.new or key.job_id in self._moved
        ]
        if changed:
            database.execute_many(connection, _TAKE, changed)


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
    """The id of a key's row."""
    return hashlib.sha256(f"{kind_name(kind)}\n{'' if tenant is None else 't' + tenant}\n{key}".encode()).hexdigest()
