"""Numbers about the whole installation, for its metrics and its doctor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple, Protocol

import sqlalchemy as sa

from penstock.config.settings import Settings
from penstock.ledger.members import heartbeats
from penstock.ledger.members.roster import Roster
from penstock.ledger.rows.steps import RESTING
from penstock.ledger.sql.clock import from_now
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import dead_letters, held_jobs, jobs, schedules, steps, workflows
from penstock.schemas.jobs.kind import DISPATCHER_QUEUE, registry
from penstock.schemas.states import FINAL, WAITING, State
from penstock.schemas.workflows import WorkflowState

OPEN = sa.and_(dead_letters.c.replayed_at.is_(None), dead_letters.c.discarded_at.is_(None))

OTHER = "other"
"""Queue and kind of what is too varied to be listed."""

QueueAndKind = tuple[str, str]


class QueueBacklogs(Protocol):
    """Reads the broker's queues, such as `open_backlogs(settings)`."""

    def read(self, queues: Collection[str]) -> Mapping[str, tuple[int, float | None]]:
        """Name of a queue → jobs that wait, and for how many seconds the first one does; None: that is unknown.

        It may add queues that only the broker knows, and raise BrokerUnavailable.
        """
        ...

    def close(self) -> None: ...


def waiting_in_queues(
    settings: Settings, database: Database, backlogs: QueueBacklogs
) -> dict[str, tuple[int, float | None]]:
    """`QueueBacklogs.read` of the queues of jobs: those of the settings, imported kinds and workers, and the broker's
    own. Raises BrokerUnavailable, LedgerUnavailable."""
    queues = {*settings.queues, *registry.queues(), *heartbeats.known_kinds(database).values()} - {DISPATCHER_QUEUE}
    waiting = backlogs.read(sorted(queues))
    return {queue: (size, oldest) for queue, (size, oldest) in waiting.items() if queue != DISPATCHER_QUEUE}


def silent_queues(waiting: Mapping[str, tuple[int, float | None]], roster: Roster) -> dict[str, int]:
    """Queue in which jobs wait and that no live worker consumes → how many."""
    alive = roster.queues()
    return {queue: size for queue, (size, _) in sorted(waiting.items()) if size and queue not in alive}


def _now(connection: sa.Connection) -> datetime:
    """The database's clock. As a value it can bound a scan of an index; as an expression PostgreSQL asks it per row."""
    now: datetime = connection.execute(sa.select(from_now())).scalar_one()
    return now


def count_due(database: Database) -> int:
    """Jobs that are due and not sent. Reads as many entries of an index. Raises LedgerUnavailable."""

    def count(connection: sa.Connection) -> int:
        now = _now(connection)
        due = sa.select(sa.func.count()).select_from(jobs).where(jobs.c.due_at <= now)
        # A query for each state, as of the dispatcher: two ranges of the index.
        return sum(connection.execute(due.where(jobs.c.state == state)).scalar_one() for state in sorted(WAITING))

    return database.read(count)


def lateness(database: Database) -> timedelta:
    """How long the first of the due jobs is due; zero where there is none. Raises LedgerUnavailable."""

    def read_first(connection: sa.Connection) -> timedelta:
        first = sa.select(sa.func.min(jobs.c.due_at))
        firsts = [connection.execute(first.where(jobs.c.state == state)).scalar() for state in sorted(WAITING)]
        now = _now(connection)
        return max(now - min([first for first in firsts if first is not None], default=now), timedelta())

    return database.read(read_first)


class OverdueSchedule(NamedTuple):
    name: str
    lateness: timedelta


def overdue_schedules(database: Database, limit: int) -> list[OverdueSchedule]:
    """The schedules that are due, the most overdue first. Raises LedgerUnavailable."""

    def read_first(connection: sa.Connection) -> list[OverdueSchedule]:
        select = sa.select(schedules.c.name, schedules.c.due_at).where(schedules.c.due_at.is_not(None))
        rows = connection.execute(select.order_by(schedules.c.due_at).limit(limit)).all()
        now = _now(connection)
        return [OverdueSchedule(row.name, now - row.due_at) for row in rows if row.due_at <= now]

    return database.read(read_first)


def overdue_schedule(database: Database) -> OverdueSchedule | None:
    """The schedule that is most overdue; None where none is due. Raises LedgerUnavailable."""
    return next(iter(overdue_schedules(database, 1)), None)


def open_dead_letters(database: Database, *, since: timedelta | None = None, most: int = 1000) -> Counter[QueueAndKind]:
    """Queue and kind → dead letters that wait for a decision. Reads the row of each. Raises LedgerUnavailable.

    Kind "" is that of messages without one. All pairs but the `most` largest are together `OTHER`.

    Arguments:
        since: only those that were made within this time.
    """
    columns, count = (dead_letters.c.queue, dead_letters.c.kind), sa.func.count()
    total = sa.func.sum(count).over().label("total")
    select = sa.select(*columns, count.label("letters"), total).where(OPEN).group_by(*columns)
    largest = select.order_by(count.desc()).limit(most)

    def read_counts(connection: sa.Connection) -> Sequence[Any]:
        recent = [] if since is None else [dead_letters.c.created_at >= _now(connection) - since]
        return connection.execute(largest.where(*recent)).all()

    rows = database.read(read_counts)
    counts = Counter({(row.queue, row.kind or ""): row.letters for row in rows})
    if rows and (rest := int(rows[0].total) - counts.total()):
        counts[OTHER, OTHER] += rest
    return counts


def count_resting(database: Database) -> dict[str, int]:
    """Kind → number of its workflows that rest. Raises LedgerUnavailable."""
    # The states let an index find those that have not ended.
    where = workflows.c.state.in_([state for state in WorkflowState if not state.final]), RESTING
    count = sa.select(workflows.c.kind, sa.func.count()).where(*where).group_by(workflows.c.kind)
    return database.read(lambda connection: {row[0]: row[1] for row in connection.execute(count)})


def waiting_kinds(database: Database, limit: int) -> Counter[QueueAndKind]:
    """Queue and kind → jobs that workers have held back, or that were sent and have not started.

    Arguments:
        limit: the most rows of either sort that are read, those that wait longest.

    Raises:
        LedgerUnavailable.
    """
    columns = jobs.c.queue, jobs.c.kind
    queued = sa.select(*columns).where(jobs.c.state == State.QUEUED).order_by(jobs.c.due_at).limit(limit)
    fresh = held_jobs.c.job_id == jobs.c.id, held_jobs.c.fence == jobs.c.fence, jobs.c.state.in_(WAITING)
    held = sa.select(*columns).join(held_jobs, sa.and_(*fresh)).order_by(held_jobs.c.due_at).limit(limit)

    def count_kinds(connection: sa.Connection) -> Counter[QueueAndKind]:
        counts: Counter[QueueAndKind] = Counter()
        for rows in (queued.subquery(), held.subquery()):
            group = sa.select(rows.c.queue, rows.c.kind, sa.func.count()).group_by(rows.c.queue, rows.c.kind)
            for queue, kind, number in connection.execute(group):
                counts[queue, kind] += number
        return counts

    return database.read(count_kinds)


def oldest_ended(database: Database, limit: int) -> list[tuple[State, datetime]]:
    """State and end of those of the `limit` oldest jobs on record that have ended, without jobs of workflows, which
    are kept with these. Raises LedgerUnavailable."""
    oldest = sa.select(jobs.c.id, jobs.c.state, jobs.c.finished_at).order_by(jobs.c.id).limit(limit).subquery()
    of_workflow = sa.exists().where(steps.c.job_id == oldest.c.id)
    ended = sa.select(oldest.c.state, oldest.c.finished_at).where(oldest.c.state.in_(FINAL), ~of_workflow)
    rows = database.read(lambda connection: connection.execute(ended).all())
    return [(State(row.state), row.finished_at) for row in rows if row.finished_at is not None]
