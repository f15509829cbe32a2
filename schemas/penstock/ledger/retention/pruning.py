"""Pruning: jobs and other rows are deleted when their retention has passed, a batch at a time.

A pass walks the jobs in the order of their ids, which is that of their creation, so it needs no index of its own. It
reads only jobs that are old enough to have expired: those that it deletes, and those that are kept for longer.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from penstock.config.errors import ConfigError, StorageError
from penstock.config.sections.retention import RetentionSettings
from penstock.ledger.queries.results import delete_result, result_ref
from penstock.ledger.rows.arrows import fan
from penstock.ledger.rows.rates.counting import OF_SOURCE, SPANS, TOTALS
from penstock.ledger.sql.clock import from_now
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import (
    attempts,
    audit,
    audit_subjects,
    cancelled_keys,
    dead_letters,
    effects,
    firings,
    held_jobs,
    job_terms,
    jobs,
    limit_waits,
    rates,
    steps,
    suspect_runs,
    unique_keys,
    workers,
    workflows,
)
from penstock.schemas.states import FINAL, State
from penstock.schemas.storage import Storage
from penstock.schemas.wire.ids import first_id, made_at

ARROWS = fan((State.SUCCEEDED, State.DISCARDED, State.CANCELLED, State.DEAD), (None,), "pruned")

log = logging.getLogger("penstock.retention")

BATCH = 500
_AHEAD = timedelta(days=1)
"""No id of ours is made so far in the future; those beyond are stock clients', which tell no time."""

Counts = Counter[str]
"""What was deleted, or would be: the state of jobs, or what else it is."""


class Pruning:
    """Pass over the ledger that deletes expired rows.

    Arguments:
        open_storage: where results lie that are not in the ledger; called when there is one to delete.
        dry_run: only count.

    Attributes:
        reached: when the last job was made that the pass has looked at; None while it does not walk jobs.
    """

    def __init__(
        self,
        database: Database,
        retention: RetentionSettings,
        open_storage: Callable[[], Storage],
        *,
        now: datetime | None = None,
        dry_run: bool = False,
    ) -> None:
        self._database, self._open_storage, self._dry_run = database, open_storage, dry_run
        self._now = now or datetime.now(UTC)
        self.reached: datetime | None = None
        keep: dict[State, timedelta | None] = {
            State.SUCCEEDED: retention.succeeded,
            State.DISCARDED: retention.discarded,
            State.CANCELLED: retention.cancelled,
            State.DEAD: retention.dead,
        }
        self._before = {state: self._now - kept for state, kept in keep.items() if kept is not None}
        self._retention = retention

    def steps(self) -> Iterator[Counts]:
        """Run the pass, one batch a step. Between two steps the caller may pause, or stop for good."""
        if self._before:
            # Nothing that was made later than that can have been over for long enough.
            yield from self._jobs("", first_id(max(self._before.values())))
            self.reached = None
            yield from self._jobs(first_id(self._now + _AHEAD), None)
        yield from self._discarded()
        yield from self._dead_letters()
        yield from self._firings()
        yield from self._workers()
        yield from self._audit()
        yield from self._rates()
        yield from self._keys()
        yield from self._each("held", held_jobs, held_jobs.c.job_id, held_jobs.c.due_at < from_now(-_AHEAD))

    def run(self) -> Counts:
        """Run the whole pass. Raises LedgerUnavailable."""
        total: Counts = Counter()
        for counts in self.steps():
            total += counts
        return total

    def _jobs(self, after: str, until: str | None) -> Iterator[Counts]:
        if self._dry_run:
            yield from self._count_jobs(after, until)
            return
        columns = ("id", "state", "finished_at", "enqueued_at", *STORED_BY)
        while True:
            page = (
                sa.select(*(jobs.c[name] for name in columns)).where(jobs.c.id > after).order_by(jobs.c.id).limit(BATCH)
            )
            if until is not None:
                page = page.where(jobs.c.id < until)
            rows = self._read(page)
            if rows and until is not None:
                self.reached = made_at(rows[-1].id) or self.reached
            over = self._unheld([row for row in rows if self._is_over(row)])
            yield self._delete_jobs(over)
            if len(rows) < BATCH:
                return
            after = rows[-1].id

    def _count_jobs(self, after: str, until: str | None) -> Iterator[Counts]:
        """Count the jobs that `_jobs` would delete, in the database."""
        among = [jobs.c.id > after, *([] if until is None else [jobs.c.id < until])]
        ended = sa.func.coalesce(jobs.c.finished_at, jobs.c.enqueued_at)
        over = sa.or_(*(sa.and_(jobs.c.state == state, ended < before) for state, before in self._before.items()))
        held = sa.exists().where(steps.c.job_id == jobs.c.id)
        count = sa.select(jobs.c.state, sa.func.count().label("rows")).where(*among, over, ~held)
        for row in self._read(count.group_by(jobs.c.state)):
            yield Counter({row.state: row.rows})

    def _is_over(self, row: Any) -> bool:
        before = self._before.get(row.state)
        return before is not None and (row.finished_at or row.enqueued_at) < before

    def _unheld(self, rows: Sequence[Any]) -> Sequence[Any]:
        """The rows without jobs of workflows on record: a later step, or a retry, needs their results."""
        where = self._database.among(steps.c.job_id, [row.id for row in rows])
        held = {row.job_id for row in self._read(sa.select(steps.c.job_id).where(where))} if rows else set()
        return [row for row in rows if row.id not in held]

    def _delete_jobs(self, rows: Sequence[Any]) -> Counts:
        kept = delete_results(rows, self._open_storage)
        # Only as they were seen: someone may have retried a job since, and it may have ended again.
        seen = {row.id: (row.state, row.finished_at) for row in rows if row.id not in kept}
        if not seen:
            return Counter()

        def delete_unchanged(connection: sa.Connection) -> Counts:
            where = self._database.among(jobs.c.id, list(seen))
            select = sa.select(jobs.c.id, jobs.c.state, jobs.c.finished_at).where(where)
            locked = connection.execute(self._database.locked(select, skip=True))
            same = [row for row in locked if seen[row.id] == (row.state, row.finished_at)]
            delete_jobs(connection, self._database, [row.id for row in same])
            return Counter(row.state for row in same)

        return self._database.write(delete_unchanged)

    def _discarded(self) -> Iterator[Counts]:
        """Prune dead jobs whose dead letters were discarded."""
        if (kept := self._retention.letters) is None:
            return
        column, after = dead_letters.c, ""
        columns = (jobs.c[name] for name in ("id", "state", "finished_at", *STORED_BY))
        over = (column.replayed_at.is_(None), column.discarded_at < self._now - kept, jobs.c.state == State.DEAD)
        select = sa.select(*columns).join(dead_letters, column.id == jobs.c.id).where(*over).order_by(jobs.c.id)
        while True:
            rows = self._read(select.where(jobs.c.id > after).limit(BATCH))
            free = self._unheld(rows)
            yield Counter(row.state for row in free) if self._dry_run else self._delete_jobs(free)
            if len(rows) < BATCH:
                return
            after = rows[-1].id

    def _dead_letters(self) -> Iterator[Counts]:
        """Prune dead letters without a job: bytes that never became one, or whose job is deleted."""
        decided, dead = self._retention.letters, self._retention.dead
        column = dead_letters.c
        kinds = []
        if decided is not None:
            kinds += [column.replayed_at < self._now - decided]
            kinds += [sa.and_(column.replayed_at.is_(None), column.discarded_at < self._now - decided)]
        if dead is not None:
            open_ = sa.and_(column.replayed_at.is_(None), column.discarded_at.is_(None))
            kinds.append(sa.and_(open_, column.created_at < self._now - dead))
        orphan = ~sa.exists().where(jobs.c.id == column.id)
        for over in kinds:
            yield from self._each("dead letters", dead_letters, column.id, sa.and_(over, orphan))

    def _firings(self) -> Iterator[Counts]:
        if (kept := self._retention.firings) is None:
            return
        for name in self._read(sa.select(firings.c.schedule).distinct()):
            over = sa.and_(firings.c.schedule == name.schedule, firings.c.fire_at < self._now - kept)
            yield from self._each("firings", firings, firings.c.fire_at, over)

    def _workers(self) -> Iterator[Counts]:
        if (kept := self._retention.workers) is not None:
            yield from self._each("workers", workers, workers.c.name, workers.c.lease_until < from_now(-kept))

    def _audit(self) -> Iterator[Counts]:
        if (kept := self._retention.audit) is not None:
            yield from self._each("audit", audit, audit.c.id, audit.c.at < self._now - kept, self._delete_subjects)

    def _rates(self) -> Iterator[Counts]:
        if (kept := self._retention.rates) is not None:
            before = int((self._now - kept).timestamp() // 60)
            for span in (OF_SOURCE, *SPANS, *TOTALS):
                over = sa.and_(rates.c.span == span, rates.c.minute < before)
                yield from self._each("rates", rates, rates.c.minute, over)

    def _delete_subjects(self, connection: sa.Connection, ids: Sequence[Any]) -> None:
        connection.execute(sa.delete(audit_subjects).where(self._database.among(audit_subjects.c.audit_id, ids)))

    def _keys(self) -> Iterator[Counts]:
        """Prune keys that no job can hold any more, and cancellations too old to concern a job."""
        longest = max((kept for kept in (self._retention.cancelled, self._retention.succeeded) if kept), default=None)
        if longest is None:
            return
        over = cancelled_keys.c.cancelled_at < self._now - longest
        yield from self._each("keys", cancelled_keys, cancelled_keys.c.id, over)
        key, after = unique_keys.c, ""
        while True:
            job = sa.select(key.id, key.job_id, key.held_until, jobs.c.state).select_from(
                unique_keys.outerjoin(jobs, jobs.c.id == key.job_id)
            )
            rows = self._read(job.where(key.id > after).order_by(key.id).limit(BATCH))
            gone = {row.id: row.job_id for row in rows if self._is_free(row, longest)}
            if gone and not self._dry_run:

                def delete_free_keys(connection: sa.Connection, gone: dict[str, str] = gone) -> None:
                    where = self._database.among(key.id, list(gone))
                    held = connection.execute(self._database.locked(sa.select(key.id, key.job_id).where(where)))
                    ids = [row.id for row in held if gone[row.id] == row.job_id]
                    connection.execute(sa.delete(unique_keys).where(self._database.among(key.id, ids)))

                self._database.write(delete_free_keys)
            yield Counter({"keys": len(gone)}) if gone else Counter()
            if len(rows) < BATCH:
                return
            after = rows[-1].id

    def _is_free(self, row: Any, longest: timedelta) -> bool:
        if row.state is not None or (row.held_until is not None and row.held_until > self._now):
            return False
        # Without a row it may still wait in the broker, unseen.
        created_at = made_at(row.job_id)
        return created_at is not None and created_at < self._now - longest

    def _each(
        self,
        what: str,
        table: sa.Table,
        key: sa.Column[Any],
        over: sa.ColumnElement[bool],
        first: Callable[[sa.Connection, Sequence[Any]], None] | None = None,
    ) -> Iterator[Counts]:
        """Delete the expired rows of a table; `first` deletes what depends on them."""
        if self._dry_run:
            [row] = self._read(sa.select(sa.func.count().label("rows")).select_from(table).where(over))
            yield Counter({what: row.rows}) if row.rows else Counter()
            return
        select = sa.select(key).where(over).order_by(key).limit(BATCH)
        while ids := [row[0] for row in self._read(select)]:

            def delete_batch(connection: sa.Connection, ids: list[Any] = ids) -> int:
                if first is not None:
                    first(connection, ids)
                return connection.execute(sa.delete(table).where(key.in_(ids), over)).rowcount

            yield Counter({what: self._database.write(delete_batch)})
            if len(ids) < BATCH:
                return

    def _read(self, select: sa.Select[Any]) -> Sequence[Any]:
        return self._database.read(lambda connection: connection.execute(select).all())


def delete_jobs(connection: sa.Connection, database: Database, ids: Sequence[str]) -> None:
    """Delete jobs and all their rows in the ledger. Call `delete_results` before, for the storage."""
    if ids:
        for table, column in (
            (attempts, attempts.c.job_id),
            (effects, effects.c.job_id),
            (limit_waits, limit_waits.c.job_id),
            (held_jobs, held_jobs.c.job_id),
            (suspect_runs, suspect_runs.c.job_id),
            (job_terms, job_terms.c.job_id),
            (dead_letters, dead_letters.c.id),
            (steps, steps.c.workflow_id),
            (workflows, workflows.c.id),
            (jobs, jobs.c.id),
        ):
            connection.execute(sa.delete(table).where(database.among(column, ids)))


STORED_BY = ("result_ref", "fence", "crashes")
"""The columns that say whether the storage may have something of a job."""


def may_have_stored(row: Any) -> bool:
    """Whether the storage may hold a result of the job, or of an attempt that crashed after it stored one."""
    return row.result_ref is not None or row.crashes > 0


def delete_results(rows: Sequence[Any], open_storage: Callable[[], Storage]) -> set[str]:
    """Delete the stored results of jobs. Returns the ids of jobs for which that failed.

    Call it before the rows are deleted: after a crash in between they still say where to look, and deleting again is
    harmless.

    Arguments:
        rows: with their id and the columns of STORED_BY.
    """
    failed: set[str] = set()
    for row in filter(may_have_stored, rows):
        try:
            delete_result(open_storage(), row.result_ref or result_ref(row.id, row.fence))
        except (StorageError, ConfigError) as error:  # a dispatcher may lack what opens it, such as boto3
            log.warning("job %s is kept: its result cannot be deleted: %s", row.id, error)
            failed.add(row.id)
    return failed


assert {State.SUCCEEDED, State.DISCARDED, State.CANCELLED, State.DEAD} == FINAL, "each has its retention"
