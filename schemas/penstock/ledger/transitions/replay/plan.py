"""Plans for dead letters: for each of a batch, what a replay or a discard does with it, or why it does nothing.

The dead letter of a job changes the job's row. An unread one, whose message never became a job, is read again: a kind,
version or field that is understood by now is accepted.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from penstock.config.errors import InvalidJob, InvalidState, JobNotFound, PenstockError, UndecodableMessage
from penstock.ledger.queries.scope import EVERYTHING, SCOPED, Scope
from penstock.ledger.queries.selection import PLACED, WITH_JOBS, Selection, matching, read_page
from penstock.ledger.rows import audit
from penstock.ledger.rows.arrows import fan
from penstock.ledger.rows.jobs import Row
from penstock.ledger.rows.jobs.terms import record_terms, replace_terms
from penstock.ledger.sql.clock import from_now
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import dead_letters, jobs
from penstock.ledger.transitions.due import waiting
from penstock.ledger.transitions.replay.edit import CONTENT, edited_envelope, edited_row, embed_column
from penstock.ledger.transitions.replay.revive import CHECKED, REVIVED, check_state, close
from penstock.schemas.states import State
from penstock.schemas.wire.codec import HEADER, Envelope, decode, encode

ARROWS = fan((State.DEAD, None), (State.SCHEDULED,), "replayed")

BATCH = 250
"""Dead letters in a transaction. Unread ones and edited ones hold up to 256 KiB each while it lasts."""

_LATER = sa.update(jobs).where(jobs.c.id == sa.bindparam("b_id")).values(due_at=sa.bindparam("b_due_at"), **REVIVED)
_AGAIN = _LATER.values(**{name: sa.bindparam(f"b_{name}") for name in CONTENT})


@dataclass(frozen=True, slots=True)
class ReplayResult:
    """Result, or in a dry run the plan, for one dead letter.

    Attributes:
        due_at: when its job is due again; None if nothing is done, or it is discarded.
        problem: reason why nothing is done; None if something is.
    """

    id: str
    kind: str | None = None
    queue: str | None = None
    due_at: datetime | None = None
    problem: PenstockError | None = None


@dataclass(frozen=True, slots=True)
class _Plan:
    result: ReplayResult
    fresh: Row | None = None
    """A whole row, if the message was read again; else the columns that an edit changes."""
    missing: bool = False
    """The job has no row in the ledger."""


DEAD_LETTER = (
    dead_letters.c.id,
    dead_letters.c.kind,
    dead_letters.c.queue,
    dead_letters.c.replayed_at,
    dead_letters.c.discarded_at,
)


@dataclass(frozen=True)
class Planner:
    """Plans the replay of each dead letter of a batch, and applies the plans."""

    database: Database
    known_kinds: Mapping[str, str]
    edit: Mapping[str, Any] | None
    discarded_too: bool
    start: datetime
    per_second: float | None
    scope: Scope = EVERYTHING
    """Bounds of the jobs: a message that is read again may be for another queue, kind or tenant than its row says."""

    def dry_run(self, ids: Sequence[str], done: int) -> list[ReplayResult]:
        """Results without a change.

        Arguments:
            done: number of dead letters of the batches before that are replayed.
        """
        plans = self.database.read(lambda connection: self._plan(connection, ids, done, lock=False))
        return [plan.result for plan in plans]

    def apply(self, entry: audit.Entry, ids: Sequence[str], done: int) -> list[ReplayResult]:
        """Replay those that can be, and record it in the audit log, in one transaction."""

        def revive_and_audit(connection: sa.Connection) -> tuple[list[_Plan], str | None]:
            plans = self._plan(connection, ids, done, lock=True)
            fit = [plan for plan in plans if plan.result.problem is None]
            _revive_all(connection, self.database, fit)
            return plans, entry.write(connection, [plan.result.id for plan in fit])

        plans, entry.line = self.database.write(revive_and_audit)
        return [plan.result for plan in plans]

    def _plan(self, connection: sa.Connection, ids: Sequence[str], done: int, *, lock: bool) -> list[_Plan]:
        columns = [jobs.c[name] for name in CONTENT] if self.edit else [jobs.c.kind, jobs.c.queue]
        job_rows = rows_by_id(connection, self.database, sa.select(*CHECKED, *columns), jobs.c.id, ids, lock)
        select = sa.select(*DEAD_LETTER, dead_letters.c.headers, dead_letters.c.raw, dead_letters.c.reason)
        rows = rows_by_id(connection, self.database, select, dead_letters.c.id, ids, lock)
        due = self._due_times(done)
        plans = []
        for id in ids:
            try:
                plan = _plan_replay(id, rows.get(id), job_rows.get(id), self.known_kinds, self.edit, self.discarded_too)
                _check_within(self.scope, plan)
            except PenstockError as problem:
                plans.append(_Plan(refused(id, rows.get(id), problem)))
            else:
                plans.append(replace(plan, result=replace(plan.result, due_at=next(due))))
        return plans

    def _due_times(self, done: int) -> Iterator[datetime]:
        rate = self.per_second
        if rate is None:
            return itertools.repeat(self.start)
        return (self.start + timedelta(seconds=number / rate) for number in itertools.count(done))


def database_now(database: Database) -> datetime:
    """The time on the database's clock: an operator's machine may be minutes off."""
    now: datetime = database.read(lambda connection: connection.execute(sa.select(from_now())).scalar_one())
    return now


def in_batches(ids: Sequence[str], step: Callable[[Sequence[str], int], list[ReplayResult]]) -> list[ReplayResult]:
    results: list[ReplayResult] = []
    done = 0
    for at in range(0, len(ids), BATCH):
        new = step(ids[at : at + BATCH], done)
        done += sum(result.problem is None for result in new)
        results += new
    return results


def rows_by_id(
    connection: sa.Connection,
    database: Database,
    select: sa.Select[Any],
    column: sa.Column[str],
    ids: Sequence[str],
    lock: bool,
) -> dict[str, Any]:
    select = select.where(database.among(column, ids)).order_by(column)
    return {row.id: row for row in connection.execute(database.locked(select) if lock else select)}


def _plan_replay(
    dead_letter_id: str,
    row: Any,
    job: Any,
    known_kinds: Mapping[str, str],
    edit: Mapping[str, Any] | None,
    discarded_too: bool,
) -> _Plan:
    _check_open(dead_letter_id, row, discarded_too)
    if row.raw is not None:
        # Under the dead letter's own id: the id in the message may belong to another job, of which this was a bad copy.
        fresh: Row | None = _read_again(row, known_kinds, edit) | {"id": dead_letter_id}
    elif job is None:
        raise InvalidState(f"dead letter {dead_letter_id} has no job in the ledger any more")
    else:
        fresh = None
    if job is not None:
        check_state(job, (State.DEAD,), read_again=fresh is not None)
        if fresh is None and edit:
            fresh = edited_row(job, edit)
    source = fresh or {"kind": job.kind, "queue": job.queue}
    return _Plan(ReplayResult(dead_letter_id, source["kind"], source["queue"]), fresh, missing=job is None)


def _check_within(scope: Scope, plan: _Plan) -> None:
    """Raises JobNotFound: the row that replaces the job's is out of these bounds."""
    row = plan.fresh
    if row is not None and not scope.includes(row["kind"], row["queue"], row["tenant"]):
        raise JobNotFound(f"no dead letter has the id {plan.result.id}")


def plan_discard(dead_letter_id: str, row: Any) -> ReplayResult:
    """Result of discarding one dead letter."""
    try:
        _check_open(dead_letter_id, row, discarded_too=False)
    except PenstockError as problem:
        return refused(dead_letter_id, row, problem)
    return ReplayResult(dead_letter_id, row.kind, row.queue)


def refused(dead_letter_id: str, row: Any, problem: PenstockError) -> ReplayResult:
    kind, queue = (None, None) if row is None else (row.kind, row.queue)
    return ReplayResult(dead_letter_id, kind, queue, problem=problem)


def _check_open(dead_letter_id: str, row: Any, discarded_too: bool) -> None:
    if row is None:
        raise JobNotFound(f"no dead letter has the id {dead_letter_id}")
    if row.replayed_at is not None:
        raise InvalidState(f"dead letter {dead_letter_id} was replayed already at {row.replayed_at.isoformat()}")
    if row.discarded_at is not None and not discarded_too:
        raise InvalidState(
            f"dead letter {dead_letter_id} was discarded at {row.discarded_at.isoformat()}; "
            f"to run its job all the same: penstock jobs retry {dead_letter_id}"
        )


def check_all_fit(results: Sequence[ReplayResult]) -> None:
    unfit = [result for result in results if isinstance(result.problem, InvalidJob)]
    if unfit:
        more = f" (and {len(unfit) - 1} more of {len(results)})" if len(unfit) > 1 else ""
        raise InvalidJob(f"{unfit[0].problem}{more}; nothing was replayed")


def _revive_all(connection: sa.Connection, database: Database, plans: Sequence[_Plan]) -> None:
    changed: list[Row] = []
    later: list[Row] = []
    new: list[Row] = []
    for plan in plans:
        id, due_at = plan.result.id, plan.result.due_at
        if plan.fresh is None:
            later.append({"b_id": id, "b_due_at": due_at})
        elif plan.missing:
            new.append({**plan.fresh, "due_at": due_at})
        else:
            content = {f"b_{name}": plan.fresh[name] for name in CONTENT}
            changed.append({"b_id": id, "b_due_at": due_at, **content})
    times = {row["b_due_at"] for row in later}
    if len(times) == 1:
        where = database.among(jobs.c.id, [row["b_id"] for row in later])
        connection.execute(sa.update(jobs).where(where).values(due_at=times.pop(), **REVIVED))
    elif later:
        database.execute_many(connection, _LATER, later)
    if changed:
        database.execute_many(connection, _AGAIN, changed)
        replace_terms(connection, database, [row["b_id"] for row in changed])
    if new:
        connection.execute(database.insert(jobs), new)
        record_terms(connection, database, new)
    close(connection, database, [plan.result.id for plan in plans], "replayed_at")


def _read_again(row: Any, known_kinds: Mapping[str, str], edit: Mapping[str, Any] | None) -> Row:
    """Unread dead letter → waiting row, by the kind as it is declared now."""
    if row.headers is None:
        raise InvalidState(f"dead letter {row.id} holds bytes that are not a message; it can be shown but not replayed")
    if row.reason == "too_large":
        raise InvalidState(f"dead letter {row.id} holds only the beginning of its message; enqueue the job again")
    envelope = Envelope(row.queue, "normal", json.loads(row.headers), row.raw)
    try:
        if edit:
            envelope = edited_envelope(envelope, row.id, edit)
        message = decode(envelope)
    except UndecodableMessage as error:
        if error.reason == "unknown_kind" and envelope.kind in known_kinds and not edit:
            # This process does not know the kind, but a worker does, and will check it.
            envelope.queue = known_kinds[envelope.kind]
            return waiting(envelope) | {"expires_at": None}
        hint = "; import the module that defines it with --import" if error.reason == "unknown_kind" else ""
        raise InvalidState(
            f"dead letter {row.id} cannot be replayed yet: {error.reason}: {error.detail}{hint}"
        ) from error
    again = encode(
        message.job,
        id=row.id,
        queue=message.queue if HEADER in envelope.headers else message.kind.queue,
        priority=message.priority,
        key=message.key,
        tenant=message.tenant,
        sent_at=message.sent_at,
        traceparent=message.traceparent,
        tags=message.tags,
    )
    fresh = waiting(again)
    fresh["embed"] = embed_column(message.embed)
    return fresh


def for_selection(
    database: Database, selection: Selection, limit: int | None, decide: Callable[[Sequence[str]], list[ReplayResult]]
) -> list[ReplayResult]:
    """Decide about the dead letters of a selection, the oldest first. Each one that was named has its result."""
    select = sa.select(*PLACED, *SCOPED).select_from(WITH_JOBS).where(*selection.scope.conditions())
    if selection.ids is None or selection.filters:
        select = select.where(*matching(database, selection))
        return decide(
            database.read(lambda connection: [row.id for row in read_page(connection, select, selection, limit)])
        )
    ids = list(dict.fromkeys(selection.ids))[:limit]
    if not selection.scope.is_bounded:
        return decide(ids)
    select = select.where(database.among(dead_letters.c.id, ids))
    within = database.read(lambda connection: {row.id for row in read_page(connection, select, selection, None)})
    by_id = {result.id: result for result in decide([id for id in ids if id in within])}
    return [by_id.get(id) or ReplayResult(id, problem=JobNotFound(f"no dead letter has the id {id}")) for id in ids]
