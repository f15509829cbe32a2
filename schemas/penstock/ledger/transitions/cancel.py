"""Cancelling jobs, by id or by key, wherever they are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from penstock.config.errors import InvalidState, JobNotFound
from penstock.ledger.queries.scope import EVERYTHING, Scope
from penstock.ledger.rows import audit
from penstock.ledger.rows.arrows import Arrow, fan
from penstock.ledger.rows.ended import announce_ends, count_rows, final_columns
from penstock.ledger.rows.jobs import UNSEEN
from penstock.ledger.rows.keys import exact, kind_name, select_by_key, selection_detail
from penstock.ledger.rows.rates.counting import OTHER_KIND, count_ends
from penstock.ledger.rows.steps import is_under_way, wake_workflows
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import cancelled_keys, jobs
from penstock.schemas.jobs.kind import registry
from penstock.schemas.jobs.unique_policy import REPLACEABLE, UNENDED
from penstock.schemas.states import Outcome, State
from penstock.schemas.wire.codec import is_id
from penstock.schemas.wire.ids import made_at

ARROWS = (
    Arrow(None, State.CANCELLED, "cancelled unseen"),
    *fan((State.SCHEDULED, State.QUEUED, State.RETRYING), (State.CANCELLED,), "cancelled"),
    Arrow(State.RUNNING, State.CANCELLED, "claimed after its key was cancelled"),
)

_BATCH = 500
_LONGEST = 255
"""Characters of a key or tenant."""
_LONGEST_NAME = 128
Seen = tuple[str, str, str, str | None, datetime | None]
"""Id, kind, key, tenant and time of enqueueing of a job."""


def request_cancel(
    database: Database,
    job_id: str,
    *,
    kind: str | None = None,
    tenant: str | None = None,
    actor: str | None = None,
    scope: Scope = EVERYTHING,
    running: bool = True,
) -> State:
    """Cancel a job: at once while it waits, through its worker while it runs. Returns its state now.

    A job that the ledger has not seen yet waits in the broker. A cancelled row is written for it, which the worker that
    gets it will find. That needs its `kind`.

    Arguments:
        kind, tenant: of a job that is not recorded yet.
        actor: for the audit log; None: a program cancels its own job, which is not audited.
        scope: the bounds of the caller; what is outside of them does not exist for it, nor does what is not recorded
            if there are bounds.
        running: whether a running job is cancelled too.

    Raises:
        InvalidState: it has ended, or runs and may not be cancelled then, or its kind has `track=False` and the broker
            has it; JobNotFound: it is not recorded and no kind was given, or outside of the scope.
    """

    def cancel_and_audit(connection: sa.Connection) -> State:
        select = sa.select(jobs.c.state, jobs.c.kind, jobs.c.queue, jobs.c.tenant).where(jobs.c.id == job_id)
        row = connection.execute(database.locked(select)).first()
        if scope.is_bounded and (row is None or not scope.includes(row.kind, row.queue, row.tenant)):
            raise JobNotFound(f"no job with the id {job_id} is recorded in the ledger")
        if row is not None and row.state == State.RUNNING and not running:
            raise InvalidState(f"job {job_id} is running; ask to terminate it, to cancel it through its worker")
        state = cancel_in(connection, database, job_id, kind=kind, tenant=tenant)
        if actor is not None:
            audit.write(connection, actor=actor, act="cancel", subject=job_id)
        return state

    return database.write(cancel_and_audit)


def cancel_in(
    connection: sa.Connection, database: Database, job_id: str, *, kind: str | None = None, tenant: str | None = None
) -> State:
    """`request_cancel` in a transaction of the caller's, without the audit log."""
    select = sa.select(jobs.c.state).where(jobs.c.id == job_id)
    state = connection.execute(database.locked(select)).scalar()
    now = datetime.now(UTC)
    if state is None:
        if kind is None or not is_id(job_id):
            raise JobNotFound(f"job {job_id} is not recorded; if it still waits in the broker, name its kind")
        if (declared := registry.find(kind)) is not None and not declared.track:
            raise InvalidState(
                f"job {job_id} is not recorded: {kind} has track=False, so its workers do not ask the ledger"
            )
        row = _unseen_row(job_id, kind, tenant, now)
        connection.execute(sa.insert(jobs).values(**row))
        counted_as = OTHER_KIND if declared is None else declared.name
        count_ends(connection, Outcome.CANCELLED, {(counted_as, row["queue"]): 1})
        return State.CANCELLED
    if State(state).final:
        raise InvalidState(f"job {job_id} is {state} already and cannot be cancelled")
    if state == State.RUNNING:
        return ask_to_cancel(connection, job_id)
    if ask_workflows_to_cancel(connection, database, [job_id]):
        return State(state)
    cancel_waiting(connection, database, [job_id], now)  # the row is locked, so it still waits
    return State.CANCELLED


def cancel_waiting(
    connection: sa.Connection,
    database: Database,
    ids: Sequence[str],
    now: datetime,
    states: frozenset[State] = REPLACEABLE,
    *,
    counted: bool = True,
    **columns: Any,
) -> int:
    """End those of these jobs that are in one of the states. Returns how many.

    Arguments:
        counted: in the rates.
        columns: others to set, such as the error.
    """
    if not ids:
        return 0
    where = sa.and_(database.among(jobs.c.id, ids), jobs.c.state.in_(sorted(states)))
    change = final_columns(State.CANCELLED, now, **columns)
    count = connection.execute(sa.update(jobs).where(where).values(**change)).rowcount
    if count:
        announce_ends(connection, database, ids)
    if count and counted:
        ended = sa.select(jobs.c.kind, jobs.c.queue).where(
            database.among(jobs.c.id, ids), jobs.c.state == State.CANCELLED, jobs.c.finished_at == now
        )
        count_rows(connection, Outcome.CANCELLED, connection.execute(ended))
    return count


def ask_workflows_to_cancel(connection: sa.Connection, database: Database, ids: Sequence[str]) -> list[str]:
    """Ask the dispatcher to cancel those of these waiting jobs that are workflows under way. Returns their ids.

    Such a job ends with its last step and compensation, so that its key is held and its schedule waits until then.
    """
    select = sa.select(jobs.c.id).where(
        database.among(jobs.c.id, ids), jobs.c.state == State.SCHEDULED, is_under_way(jobs.c.id)
    )
    if workflow_ids := list(connection.scalars(select)):
        where = database.among(jobs.c.id, workflow_ids)
        connection.execute(sa.update(jobs).where(where).values(cancel_requested=True))
        wake_workflows(connection, database, workflow_ids)
    return workflow_ids


def ask_to_cancel(connection: sa.Connection, job_id: str) -> State:
    """Ask the worker of a running job to cancel it."""
    connection.execute(sa.update(jobs).where(jobs.c.id == job_id).values(cancel_requested=True))
    return State.RUNNING


def cancel_all(connection: sa.Connection, database: Database, ids: Sequence[str], now: datetime) -> None:
    """Cancel these jobs: those that wait at once, those that run through their workers, workflows through the
    dispatcher."""
    if ids:
        workflow_ids = ask_workflows_to_cancel(connection, database, ids)
        cancel_waiting(connection, database, sorted(set(ids) - set(workflow_ids)), now)
        where = sa.and_(database.among(jobs.c.id, ids), jobs.c.state == State.RUNNING)
        connection.execute(sa.update(jobs).where(where).values(cancel_requested=True))


def cancel_key(
    database: Database, key: str, *, kind: str | None = None, tenant: str | None = None, actor: str | None = None
) -> list[str]:
    """See `Producer.cancel`.

    Arguments:
        actor: for the audit log, which has one line for the whole act; None: not audited.
    """
    if len(key) > _LONGEST or len(tenant or "") > _LONGEST or len(kind or "") > _LONGEST_NAME:
        return []  # no job can have it
    now = datetime.now(UTC)
    kind = kind and kind_name(kind)
    # Inserted first: whatever records a job of this key later looks here afterwards (`cancel_unseen`). So for a job
    # that is recorded meanwhile, either this sees the row or that sees the entry.
    entry = {"id": _entry_id(key, kind, tenant), "key": key, "kind": kind, "tenant": tenant, "cancelled_at": now}
    detail = selection_detail(key, kind, tenant)
    line = None if actor is None else audit.Entry(database, actor=actor, act="cancel", detail=detail)

    def forbid(connection: sa.Connection) -> str | None:
        connection.execute(database.upsert(cancelled_keys), [entry])
        # Audited even where no job is found: it holds for jobs that the ledger has not seen.
        return actor and audit.write(connection, actor=actor, act="cancel", count=0, detail=detail)

    line_id = database.write(forbid)
    if line is not None:
        line.line = line_id
    cancelled: list[str] = []
    last = ""

    def cancel_batch(connection: sa.Connection) -> tuple[list[str], str]:
        select = select_by_key(key, kind, tenant).where(jobs.c.id > last, jobs.c.state.in_(sorted(UNENDED)))
        rows = connection.execute(database.locked(select.limit(_BATCH))).all()
        ids = [row.id for row in exact(rows, key, tenant)]
        cancel_all(connection, database, ids, now)
        if line is not None:
            line.write(connection, ids)
        return ids, rows[-1].id if len(rows) == _BATCH else ""

    while True:
        ids, last = database.write(cancel_batch)
        cancelled += ids
        if not last:
            return cancelled


def purge(
    connection: sa.Connection, database: Database, fetched: Sequence[tuple[str, int]]
) -> tuple[list[str], list[str]]:
    """Cancel jobs that a broker has handed out, and no one has started.

    Returns the ids of those that are cancelled, and of those that run, whose messages are to stay. The others are not
    on record, or were copies.

    Arguments:
        taken: id and fence of each message.
    """
    fences = dict(fetched)
    rows = database.rows_of(connection, _PURGED, jobs.c.id, sorted(fences))
    waiting = sorted(row.id for row in rows if row.state == State.QUEUED and row.fence <= fences[row.id])
    cancel_waiting(connection, database, waiting, datetime.now(UTC), frozenset({State.QUEUED}))
    return waiting, [row.id for row in rows if row.state == State.RUNNING]


_PURGED = sa.select(jobs.c.id, jobs.c.state, jobs.c.fence)


def cancel_unseen(database: Database, seen: Sequence[Seen], *, claimed: bool = False) -> set[str]:
    """Cancel those of jobs just recorded whose key was cancelled before the ledger saw them. Returns their ids.

    Call it after the record is committed, and before one of them is run.

    Arguments:
        seen: at least one.
        claimed: the caller holds their claims, and runs none that this cancels.
    """
    gone = database.read(lambda connection: cancelled_before(connection, database, seen))
    now = datetime.now(UTC)
    states = UNENDED if claimed else REPLACEABLE
    keys = {(job_id, key) for job_id, _, key, _, _ in seen if job_id in gone}

    def cancel_recorded(connection: sa.Connection) -> None:
        # Under the id of a message there may be another job, recorded before, whose key was not cancelled.
        select = sa.select(jobs.c.id, jobs.c.key).where(database.among(jobs.c.id, sorted(gone)))
        ids = sorted(row.id for row in connection.execute(select) if (row.id, row.key) in keys)
        cancel_waiting(connection, database, ids, now, states)

    if gone:
        database.write(cancel_recorded)
    return gone


def cancelled_before(connection: sa.Connection, database: Database, seen: Sequence[Seen]) -> set[str]:
    """Ids of those jobs whose key was cancelled until now, after they were enqueued."""
    keys = sorted({key for _, _, key, _, _ in seen})
    select = sa.select(cancelled_keys).where(database.among(cancelled_keys.c.key, keys))
    entries = {row.id: row.cancelled_at for row in connection.execute(select)}
    gone = set()
    for job_id, kind, key, tenant, sent_at in seen if entries else ():
        names = {_entry_id(key, k, t) for k in (None, kind_name(kind)) for t in (None, tenant)}
        if any(sent_at is not None and sent_at <= entries[name] for name in names & entries.keys()):
            gone.add(job_id)
    return gone


def _entry_id(key: str, kind: str | None, tenant: str | None) -> str:
    return hashlib.sha256(json.dumps([key, kind, tenant]).encode()).hexdigest()


def _unseen_row(job_id: str, kind: str, tenant: str | None, now: datetime) -> dict[str, Any]:
    declared = registry.find(kind)
    return {
        "id": job_id,
        "kind": kind,
        "queue": declared.queue if declared else "",
        "priority": declared.priority if declared else "normal",
        "delivery": declared.delivery if declared else "at_least_once",
        "version": declared.version if declared else 1,
        "payload": UNSEEN,
        "tenant": tenant,
        "state": State.CANCELLED,
        "enqueued_at": made_at(job_id) or now,
        "finished_at": now,
    }
