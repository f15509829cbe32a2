"""Jobs that wait for their time: delayed ones, retries and those put back, kept in the ledger until they are due.
Jobs that a worker does not know are among them (`hold_back`): they are due again in a moment, for another worker.

Several dispatchers send due jobs at once, in three short steps, so that no lock is held during the sending: *reserve*
(the due time moves a little ahead; rows that another dispatcher holds are skipped), send, *mark*. A dispatcher that
dies in between leaves rows that are due again when the reservation ends. A job that it had sent already goes out twice
under one id, attempt and fence, which the claim absorbs.

A row that is marked as sent keeps in `due_at` when it was sent, on the database's clock. `lost` finds those that the
broker has lost.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import sqlalchemy as sa

from penstock.ledger.members.leases import excuse_outage
from penstock.ledger.rows.arrows import Arrow, fan
from penstock.ledger.rows.ended import final_columns
from penstock.ledger.rows.jobs import (
    IDENTITY,
    RESERVED,
    Row,
    body_of_row,
    is_another,
    is_elsewhere,
    mark_sent,
    reserved,
)
from penstock.ledger.rows.jobs import waiting as waiting
from penstock.ledger.rows.jobs.terms import delete_terms, record_terms
from penstock.ledger.rows.waits.held_jobs import Holds
from penstock.ledger.sql.clock import from_now, has_passed
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import jobs, workers
from penstock.ledger.transitions.cancel import cancel_unseen, cancelled_before
from penstock.ledger.transitions.lost import put_back_crashed
from penstock.schemas.jobs.kind import registry
from penstock.schemas.states import FINAL, WAITING, State
from penstock.schemas.wire.codec import HEADER, Envelope, seal

ARROWS = (
    Arrow(None, State.SCHEDULED, "recorded until due"),
    Arrow(None, State.CANCELLED, "its key was cancelled before"),
    *fan((State.SCHEDULED, State.RETRYING), (State.QUEUED,), "sent"),
    Arrow(State.SCHEDULED, None, "sent, and not tracked"),
    Arrow(State.QUEUED, State.SCHEDULED, "held back: its worker does not know it"),
    Arrow(State.QUEUED, State.SCHEDULED, "moved to another queue"),
    Arrow(None, State.SCHEDULED, "moved to another queue"),
)

_ENVELOPES = ("id", "kind", "queue", "priority", "version", "payload", "embed", "key", "tenant", "traceparent", "tags")
_READ = [jobs.c[name] for name in (*_ENVELOPES, "failures", "fence", "enqueued_at", "due_at", "expires_at")]
"""What an envelope is made of; a row has twice as many columns."""


def schedule(database: Database, envelopes: Iterable[Envelope]) -> None:
    """Keep jobs until they are due. A job that the ledger has already stays as it is.

    Raises:
        UndecodableMessage: an envelope cannot be kept; nothing was written. LedgerUnavailable: likewise.
    """
    keep(database, [waiting(envelope) for envelope in envelopes])


def keep(database: Database, rows: Sequence[Row]) -> None:
    """`schedule` for rows that `waiting` has made."""
    about = _with_keys(rows)
    if rows:
        database.write(lambda connection: _insert_waiting(connection, database, rows, about))
        # A cancellation of a key meanwhile may not have seen these. A crash in between brings the messages again, and
        # this check with them.
        if about:
            cancel_unseen(database, about)


def _with_keys(rows: Sequence[Row]) -> list[Any]:
    """Rows with a key, as `cancelled_before` takes them."""
    names = ("id", "kind", "key", "tenant", "enqueued_at")
    return [tuple(row[name] for name in names) for row in rows if row["key"] is not None]


def _insert_waiting(connection: sa.Connection, database: Database, rows: Sequence[Row], about: list[Any]) -> None:
    # The first dispatcher that sees an overdue job sends it, so a cancelled one must not wait even for a moment.
    gone = cancelled_before(connection, database, about) if about else ()
    cancelled = final_columns(State.CANCELLED, datetime.now(UTC))
    kept = [{**row, **cancelled} if row["id"] in gone else row for row in rows]
    connection.execute(database.insert_ignore(jobs), kept)
    record_terms(connection, database, rows)


HoldAnswer = Literal["held", "copy", "over", "running", "id_taken"]
"""Of a job that a worker does not know: it waits for another worker; the message is a copy; its grace is over, so bury
it; a live worker may still run it, so ask again; or its id is that of another job, so bury it apart."""


@dataclass(slots=True)
class HoldRequest:
    """A message that a worker does not know.

    Attributes:
        row: of its job, as `waiting` makes it.
        fence: in the message.
        redelivered: the broker has handed it out before, so the worker that had it may be dead.
        reason, detail: why this worker does not know it, as of a dead letter.
    """

    row: Row
    fence: int
    redelivered: bool
    reason: str
    detail: str


def hold_back(
    database: Database,
    requests: Sequence[HoldRequest],
    *,
    worker: str,
    grace: timedelta,
    lease: timedelta = timedelta(),
) -> list[HoldAnswer]:
    """Hold jobs back that a worker does not know: the dispatcher sends them again in a moment, for another worker.

    The grace counts from the first time that a worker did not know the job since its last attempt.

    Arguments:
        lease: see `excuse_outage`.

    Raises:
        LedgerUnavailable: nothing was written.
    """
    rows = [request.row for request in requests]
    about = _with_keys(rows)

    def insert_and_hold(connection: sa.Connection) -> list[HoldAnswer]:
        _insert_waiting(connection, database, rows, about)
        return _hold_back(connection, database, requests, worker, grace, lease)

    answers = database.write(insert_and_hold)
    if about:
        cancel_unseen(database, about)
    return answers


def _hold_back(
    connection: sa.Connection,
    database: Database,
    requests: Sequence[HoldRequest],
    worker: str,
    grace: timedelta,
    lease: timedelta,
) -> list[HoldAnswer]:
    ids = sorted({request.row["id"] for request in requests})
    now = connection.execute(sa.select(from_now())).scalar_one()
    on_record = {row.id: row for row in database.rows_of(connection, _HELD, jobs.c.id, ids)}
    holds = Holds(connection, database, ids, now, grace)
    answers: list[HoldAnswer] = []
    updates: list[Row] = []
    crashed: list[Any] = []
    answered: set[str] = set()
    for request in requests:
        job = on_record.get(request.row["id"])
        if job is not None and _is_another(request, job):
            answers.append("id_taken")
            continue
        if job is None or job.id in answered or _is_copy(request, job, now):
            answers.append("copy")
            continue
        if is_elsewhere(job, request.row["queue"]):
            answers.append("id_taken")
            continue
        answered.add(job.id)
        runs = job.state == State.RUNNING
        if runs and job.delivery == "once" and _is_alive(connection, database, job.worker, lease):
            answers.append("running")
            continue
        if runs:
            crashed.append(job)
        due_at = holds.hold(job.id, job.fence + int(runs), worker, request.reason, request.detail)
        if due_at is None:
            answers.append("over")
            continue
        answers.append("held")
        if not job.cancel_requested:
            state = job.state if job.state in WAITING else State.SCHEDULED
            updates.append({"b_id": job.id, "b_state": state, "b_due_at": due_at})
    put_back_crashed(connection, database, crashed, "worker {worker} died or fell silent while it ran this")
    if updates:
        database.execute_many(connection, _HOLD, updates)
    holds.write()
    return answers


_HELD = sa.select(
    *(jobs.c[name] for name in ("id", "state", "fence", "attempt", "crashes", "worker", "delivery")),
    *(jobs.c[name] for name in ("cancel_requested", "started_at", "due_at")),
    *IDENTITY,
)
_HOLD = (
    sa.update(jobs)
    .where(jobs.c.id == sa.bindparam("b_id"))
    .values(state=sa.bindparam("b_state"), due_at=sa.bindparam("b_due_at"))
)


def _is_another(request: HoldRequest, job: Any) -> bool:
    row = request.row
    return is_another(job, row["kind"], registry.find(row["kind"]), row["tenant"], row["queue"])


def _is_copy(request: HoldRequest, job: Any, now: datetime) -> bool:
    """Whether the job goes on without this message, by the rules of claims."""
    if job.state in FINAL or (job.cancel_requested and job.state != State.RUNNING):
        return True
    if job.state == State.RUNNING:
        return not request.redelivered or job.delivery == "at_most_once"
    if request.fence < job.fence and (job.state in WAITING or job.worker is None):
        return True
    # A row that is only reserved may be sent and not marked yet.
    return job.state in WAITING and job.due_at is not None and job.due_at > now + RESERVED


def _is_alive(connection: sa.Connection, database: Database, worker: str | None, lease: timedelta) -> bool:
    excuse_outage(connection, database, lease)
    alive = workers.c.name == worker, workers.c.lease_until > from_now(), workers.c.stopped_at.is_(None)
    return connection.execute(sa.select(workers.c.name).where(*alive)).first() is not None


def move(
    connection: sa.Connection, database: Database, fetched: Sequence[tuple[Row, int]], queue: str
) -> tuple[list[str], list[str]]:
    """Put jobs that a broker has handed out, and no one has started, into the ledger, due at once in another queue.

    Returns the ids of those that were moved, and of those that run, whose messages are to stay. The others were copies.
    A message that comes again after a crash has an old fence, and is refused.

    Arguments:
        taken: the row of each message, as `waiting` makes it, and the fence in the message.
    """
    ids = sorted({row["id"] for row, _ in fetched})
    on_record = {row.id: row for row in database.rows_of(connection, _MOVED, jobs.c.id, ids)}
    now = connection.execute(sa.select(from_now())).scalar_one()
    moved: list[str] = []
    kept: list[str] = []
    new: list[Row] = []
    for row, fence in fetched:
        job = on_record.get(row["id"])
        if job is None:
            new.append({**row, "queue": queue, "due_at": now, "fence": fence + 2})
        elif job.state == State.RUNNING:
            kept.append(job.id)
            continue
        elif job.state == State.QUEUED and not job.cancel_requested and job.fence <= fence:
            change = {
                "state": State.SCHEDULED,
                "queue": queue,
                "due_at": now,
                "fence": jobs.c.fence + 2,
                "worker": None,
            }
            connection.execute(sa.update(jobs).where(jobs.c.id == job.id).values(**change))
        else:
            continue  # a copy of a job that has ended, or that was sent again since
        moved.append(row["id"])
    if new:
        connection.execute(database.insert_ignore(jobs), new)
    return moved, kept


_MOVED = sa.select(jobs.c.id, jobs.c.state, jobs.c.fence, jobs.c.cancel_requested)


def due(
    connection: sa.Connection,
    database: Database,
    now: datetime,
    limit: int,
    exclude: Iterable[str] = (),
    only: Sequence[str] | None = None,
) -> list[Any]:
    """Rows whose time has come, the longest overdue first, locked against other dispatchers.

    Arguments:
        limit: of each state, scheduled and retrying, so that a flood of one does not starve the other.
        exclude: queues to leave out.
        only: ids of jobs; None: all.
    """
    rows: list[Any] = []
    for state in sorted(WAITING):
        select = _due(state, now)
        if only is not None:
            select = select.where(database.among(jobs.c.id, only))
        if exclude:
            select = select.where(jobs.c.queue.not_in(list(exclude)))
        rows += connection.execute(database.locked(select.limit(limit), skip=True)).all()
    return sorted(rows, key=lambda row: row.due_at)


def envelope_of(row: Any) -> Envelope:
    """The envelope of a waiting row's next attempt."""
    # Its worker may know this kind as one with track=False, and would not claim, nor end, what carries no fence.
    fence = row.fence if registry.find(row.kind) is not None else max(row.fence, 1)
    envelope = seal(
        row.kind,
        row.version,
        body_of_row(row),
        row.id,
        row.queue,
        row.priority,
        attempt=row.failures + 1,
        fence=fence,
        key=row.key,
        tenant=row.tenant,
        sent_at=row.enqueued_at,
        expires_at=row.expires_at,
        traceparent=row.traceparent,
        tags=json.loads(row.tags) if row.tags else (),
    )
    if row.due_at is not None:
        envelope.headers[HEADER]["ready_at"] = row.due_at.isoformat()
    return envelope


def any_due() -> sa.ColumnElement[bool]:
    return sa.or_(*(has_passed(jobs.c.due_at, jobs.c.state == state) for state in sorted(WAITING)))


def reserve(
    database: Database, limit: int, exclude: Iterable[str], only: Sequence[str] | None = None
) -> tuple[list[Any], datetime]:
    """Reserve due rows for this dispatcher. Returns them, and the end of the reservation."""
    now, any_due = database.read(_peek)
    until = now + RESERVED
    if not any_due:
        return [], until  # looking takes no lock; on SQLite, polling would otherwise fight workers for the only one

    def move_ahead(connection: sa.Connection) -> list[Any]:
        rows = due(connection, database, now, limit, exclude, only)
        if rows:
            ids = [row.id for row in rows]
            connection.execute(sa.update(jobs).where(database.among(jobs.c.id, ids)).values(due_at=until))
        return rows

    return database.write(move_ahead), until


def _peek(connection: sa.Connection) -> tuple[datetime, bool]:
    """The database's time, and whether a row is due by then."""
    # The database's clock, as for retries; ahead by the fraction that SQLite's clock leaves out.
    now = connection.execute(sa.select(from_now(timedelta(milliseconds=1)))).scalar_one()
    firsts = [_due(state, now).with_only_columns(jobs.c.id).limit(1) for state in WAITING]
    return now, any(connection.execute(first).first() for first in firsts)


def _due(state: State, now: datetime) -> sa.Select[Any]:
    """Query for one state, in the order of the index on (state, due_at): the LIMIT then ends the scan early, whatever a
    planner believes about the rest of the table."""
    return sa.select(*_READ).where(jobs.c.state == state, jobs.c.due_at <= now).order_by(jobs.c.due_at)


def mark_as_sent(database: Database, rows: Sequence[Any], until: datetime, began: float) -> None:
    kept = [row.id for row in rows if _is_kept(row)]
    gone = [row.id for row in rows if not _is_kept(row)]
    tagged = [row.id for row in rows if row.tags and not _is_kept(row)]

    def mark(connection: sa.Connection) -> None:
        if kept:
            mark_sent(connection, database, kept, until, began)
        if gone:
            connection.execute(sa.delete(jobs).where(reserved(database, gone, until)))
            delete_terms(connection, database, tagged)

    database.write(mark)


def _is_kept(row: Any) -> bool:
    """`track=False` keeps only failures: a delayed job without any leaves the ledger when the broker has it, because
    the worker that runs it writes nothing."""
    kind = registry.find(row.kind)
    return kind is None or kind.track or row.fence > 0 or row.failures > 0


def release(database: Database, rows: Sequence[Any], until: datetime) -> None:
    def restore_due_times(connection: sa.Connection) -> None:
        for row in rows:
            where = reserved(database, [row.id], until)
            connection.execute(sa.update(jobs).where(where).values(due_at=row.due_at))

    database.write(restore_due_times)
