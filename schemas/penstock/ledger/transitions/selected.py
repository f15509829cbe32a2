"""Acts on all jobs that match a filter: cancelled, tried again, rescheduled, moved to another queue.

The jobs are changed in batches, each in a transaction of its own, the newest first. Each job is looked at again under
its lock, so an act that is repeated, or done by two people at once, changes no job twice. The whole act has one line in
the audit log, which covers what is committed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Protocol

import sqlalchemy as sa

from penstock.ledger.members import heartbeats
from penstock.ledger.queries.jobs import JobFilter, count, each_page
from penstock.ledger.rows import audit
from penstock.ledger.rows.attempts import keep_success
from penstock.ledger.rows.jobs import UNSEEN
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import audit as audit_log
from penstock.ledger.sql.tables import dead_letters, jobs
from penstock.ledger.transitions.cancel import cancel_all
from penstock.ledger.transitions.replay.plan import Planner, database_now
from penstock.ledger.transitions.replay.revive import revive_all
from penstock.schemas.jobs.unique_policy import UNENDED
from penstock.schemas.states import FINAL, WAITING, State

BATCH = 250
"""Jobs in a transaction."""

COUNTED = 1_000_000
"""Jobs that a dry run counts, at most."""

_READ = [jobs.c[name] for name in ("id", "state", "queue", "due_at", "expires_at", "cancel_requested")] + [
    (jobs.c.payload == UNSEEN).label("unseen")
]


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of an act, and in the end its result.

    Attributes:
        done: jobs that were changed; in a dry run those that match and could be, counted up to `COUNTED`.
        refused: jobs that match and were not changed: they have changed meanwhile, expire before their new time, or
            were cancelled before their message was seen.
        stopped: the caller has stopped it before the end.
        next: where to go on, for a caller that has stopped it.
        line: id of its line in the audit log; None: nothing is changed yet.
    """

    done: int = 0
    refused: int = 0
    stopped: bool = False
    next: str | None = field(default=None, compare=False)
    line: str | None = field(default=None, compare=False)


class Act(Protocol):
    """Act on each job of a batch.

    Attributes:
        name: the act in the audit log.
        states: of jobs that it is for; others do not count.
        detail: for the audit log.
    """

    @property
    def name(self) -> str: ...
    @property
    def states(self) -> frozenset[State]: ...
    @property
    def detail(self) -> dict[str, Any]: ...

    def fits(self, row: Any) -> bool:
        """Whether it can be done to this locked row of `_READ`, and has not been done yet."""

    def apply(self, connection: sa.Connection, database: Database, rows: Sequence[Any]) -> None:
        """Do it to these, which fit."""


@dataclass(frozen=True)
class Cancel:
    """At once while they wait in the ledger or in the broker, through their worker while they run."""

    name = "cancel"
    states = UNENDED

    @property
    def detail(self) -> dict[str, Any]:
        return {}

    def fits(self, row: Any) -> bool:
        return not row.cancel_requested

    def apply(self, connection: sa.Connection, database: Database, rows: Sequence[Any]) -> None:
        cancel_all(connection, database, [row.id for row in rows], datetime.now(UTC))


@dataclass(frozen=True)
class Retry:
    """Run ended jobs again, now; those that succeeded only with `force`."""

    force: bool = False
    name = "retry"

    @property
    def states(self) -> frozenset[State]:
        return FINAL if self.force else FINAL - {State.SUCCEEDED}

    @property
    def detail(self) -> dict[str, Any]:
        return {"force": True} if self.force else {}

    def fits(self, row: Any) -> bool:
        return not row.unseen

    def apply(self, connection: sa.Connection, database: Database, rows: Sequence[Any]) -> None:
        for row in rows:
            if row.state == State.SUCCEEDED:
                keep_success(connection, row.id)
        revive_all(connection, database, [row.id for row in rows], succeeded=self.force)


@dataclass(frozen=True)
class Reschedule:
    """Give jobs that wait for their time another one."""

    due_at: datetime
    name = "reschedule"
    states = WAITING

    @property
    def detail(self) -> dict[str, Any]:
        return {"due_at": self.due_at}

    def fits(self, row: Any) -> bool:
        # The job of a workflow waits without a time.
        in_time = row.expires_at is None or row.expires_at > self.due_at
        return row.due_at not in (None, self.due_at) and in_time

    def apply(self, connection: sa.Connection, database: Database, rows: Sequence[Any]) -> None:
        _change(connection, database, rows, due_at=self.due_at)


@dataclass(frozen=True)
class Move:
    """Move jobs that wait for their time to another queue, in which they run then."""

    queue: str
    name = "move"
    states = WAITING

    @property
    def detail(self) -> dict[str, Any]:
        return {"to_queue": self.queue}

    def fits(self, row: Any) -> bool:
        return row.due_at is not None and row.queue != self.queue

    def apply(self, connection: sa.Connection, database: Database, rows: Sequence[Any]) -> None:
        _change(connection, database, rows, queue=self.queue)


def _change(connection: sa.Connection, database: Database, rows: Sequence[Any], **columns: Any) -> None:
    # The fence rises, so that a copy that a dispatcher may be sending is refused; as in `reschedule`.
    where = database.among(jobs.c.id, [row.id for row in rows])
    connection.execute(sa.update(jobs).where(where).values(fence=jobs.c.fence + 2, **columns))


def narrowed(filter: JobFilter, act: Act) -> JobFilter:
    """The filter with only those states that the act is for."""
    states = act.states.intersection(filter.states) if filter.states else act.states
    return replace(filter, states=tuple(sorted(states))) if states else replace(filter, ids=())


def dry_run(database: Database, filter: JobFilter, act: Act, *, seconds: float = 2.0) -> tuple[int, bool]:
    """How many jobs match and are in a state that the act is for, and whether these are all: it stops counting when
    its time is up."""
    number, until = 0, time.monotonic() + seconds
    for page in each_page(database, narrowed(filter, act), size=1000):
        number += len(page.rows)
        if page.next is not None and time.monotonic() > until:
            return number, False
    return number, True


def act_on_all(
    database: Database,
    filter: JobFilter,
    act: Act,
    *,
    actor: str,
    dry_run: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
    is_stopped: Callable[[], bool] = lambda: False,
    after: str | None = None,
    line: str | None = None,
) -> Progress:
    """Do this to all jobs that match the filter now, in batches.

    Arguments:
        actor: for the audit log.
        dry_run: only count.
        on_progress: called after each batch.
        is_stopped: asked after each batch.
        after, line: `next` and `line` of a part that was stopped: this goes on there, in the same line of the log.

    Raises:
        LedgerUnavailable: the batches before are changed and on record.
    """
    filter = narrowed(filter, act)
    if dry_run:
        return Progress(done=count(database, filter, most=COUNTED))
    entry = audit.Entry(database, actor=actor, act=act.name, detail={**_described(filter), **act.detail})
    progress = Progress()
    if line is not None and database.read(lambda connection: _is_line(connection, line, actor, act.name)):
        entry.line = line
    for page in each_page(database, filter, size=BATCH, after=after):
        ids = [row.id for row in page.rows]
        done = _act_on_batch(database, ids, act, entry, filter) if ids else 0
        progress = Progress(progress.done + done, progress.refused + len(ids) - done, next=page.next, line=entry.line)
        if on_progress is not None:
            on_progress(progress)
        if page.next is not None and is_stopped():
            return replace(progress, stopped=True)
    return progress


def _is_line(connection: sa.Connection, line: str, actor: str, act: str) -> bool:
    """Whether this line of the audit log is one of this actor's for such an act."""
    where = (audit_log.c.id == line, audit_log.c.actor == actor, audit_log.c.act == act)
    return connection.execute(sa.select(audit_log.c.id).where(*where)).first() is not None


def _act_on_batch(database: Database, ids: Sequence[str], act: Act, entry: audit.Entry, filter: JobFilter) -> int:
    unread = _unread(database, ids) if isinstance(act, Retry) else []

    def act_and_audit(connection: sa.Connection) -> tuple[int, str | None]:
        left = [id for id in ids if id not in unread]
        select = sa.select(*_READ).where(database.among(jobs.c.id, left), jobs.c.state.in_(sorted(act.states)))
        locked = connection.execute(database.locked(select.order_by(jobs.c.id))).all()
        if rows := [row for row in locked if act.fits(row)]:
            act.apply(connection, database, rows)
        return len(rows), entry.write(connection, [row.id for row in rows])

    done, entry.line = database.write(act_and_audit)
    if unread:  # their messages must be read first
        now, kinds = database_now(database), heartbeats.known_kinds(database)
        results = Planner(database, kinds, None, True, now, None, filter.scope).apply(entry, unread, 0)
        done += sum(result.problem is None for result in results)
    return done


def _unread(database: Database, ids: Sequence[str]) -> list[str]:
    where = (
        database.among(dead_letters.c.id, ids),
        dead_letters.c.replayed_at.is_(None),
        dead_letters.c.raw.is_not(None),
    )
    return list(database.read(lambda connection: connection.scalars(sa.select(dead_letters.c.id).where(*where)).all()))


def _described(filter: JobFilter) -> dict[str, Any]:
    """The filter for the audit log, which has no values of a payload."""
    description = dict(filter.given)
    if "fields" in description:
        description["fields"] = [name for name, _ in filter.fields]
    return description if filter.ids is None else {**description, "selected": len(filter.ids)}
