"""Filters of jobs, as conditions for the database; and what of them an index answers."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from penstock.ledger.queries.jobs.prefixes import begins_with
from penstock.ledger.queries.scope import EVERYTHING, Scope, may_match
from penstock.ledger.rows.jobs.terms import field_term, tag_term
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import job_terms, jobs, workers
from penstock.ledger.sql.tables.jobs import ENDED_WITHOUT_SUCCESS, NOT_RUNNING, UNCOMMON_STATE
from penstock.ledger.sql.text import LONGEST_ERROR, storable
from penstock.schemas.jobs.kind import registry
from penstock.schemas.states import FINAL, State

WITHOUT_SUCCESS = FINAL - {State.SUCCEEDED}

_CLASS_NAME = re.compile(r"[\w.]+")


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Filter of jobs: those that match all that is given; without any, all jobs within the scope.

    Attributes:
        ids: these; an empty tuple is none of them.
        id_prefix: the beginning of their ids.
        states: any of these; empty: all.
        kind: a kind or one of its aliases; jobs under its other names match, too.
        worker: that runs the job, or ran it last.
        engine: of that worker, such as `celery`; None for those whose worker is pruned.
        enqueued_since, enqueued_until: enqueued at that time or later; before that time.
        finished_since, finished_until: ended at that time or later; before that time.
        error_class: class of the last error, such as `ValueError`, without its module or with it.
        error: what the last error contains, in upper or lower case.
        tags: jobs that have all of these.
        fields: name to value of fields that the kind declares with `search=`; needs the kind.
        scope: the bounds of the caller; what is outside of them does not exist for it.

    Raises:
        ValueError: fields without a kind, or that the kind does not declare; a class that is not a name.
    """

    ids: tuple[str, ...] | None = None
    id_prefix: str | None = None
    states: tuple[State, ...] = ()
    kind: str | None = None
    queue: str | None = None
    tenant: str | None = None
    key: str | None = None
    worker: str | None = None
    engine: str | None = None
    enqueued_since: datetime | None = None
    enqueued_until: datetime | None = None
    finished_since: datetime | None = None
    finished_until: datetime | None = None
    error_class: str | None = None
    error: str | None = None
    tags: tuple[str, ...] = ()
    fields: tuple[tuple[str, str], ...] = ()
    scope: Scope = EVERYTHING

    def __post_init__(self) -> None:
        if self.error_class is not None and _CLASS_NAME.fullmatch(self.error_class) is None:
            raise ValueError(f"{self.error_class!r} is not the name of a class, such as ValueError")
        if self.fields:
            _check_fields(self.kind, [name for name, _ in self.fields])

    @property
    def given(self) -> dict[str, Any]:
        """The filters that are given, besides the ids and the scope."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in ("ids", "scope")}
        return {name: value for name, value in values.items() if value not in (None, ())}

    @property
    def by_end(self) -> bool:
        """Whether its jobs are in the order in which they ended, else in that in which they were enqueued. They are if
        it asks when jobs ended without success, for which there is an index."""
        by_time = self.finished_since is not None or self.finished_until is not None
        return by_time and bool(self.states) and WITHOUT_SUCCESS.issuperset(self.states)

    @property
    def order(self) -> tuple[sa.Column[datetime], sa.Column[str]]:
        """The columns that the order goes by, from old to new."""
        if self.by_end:
            return jobs.c.finished_at, jobs.c.id
        return (job_terms.c.enqueued_at, job_terms.c.job_id) if self.terms else (jobs.c.enqueued_at, jobs.c.id)

    @property
    def terms(self) -> list[str]:
        """Terms of `penstock_job_terms` that its jobs have."""
        return [*map(tag_term, self.tags), *(field_term(self.kind or "", name, value) for name, value in self.fields)]

    @property
    def is_exact(self) -> bool:
        """Whether the conditions match what `includes` does, so that no row needs to be looked at again."""
        return {self.queue, self.tenant, self.key, self.id_prefix} == {None} and not self.scope.is_bounded

    def includes(self, row: Any) -> bool:
        """Whether this row, found by the conditions, matches exactly: the database may take "A" and "a" as equal.

        Arguments:
            row: with id, kind, queue, tenant and key.
        """
        exact = ((row.queue, self.queue), (row.tenant, self.tenant), (row.key, self.key))
        if any(value is not None and of_row != value for of_row, value in exact):
            return False
        if self.id_prefix is not None and not row.id.startswith(self.id_prefix):
            return False
        return self.scope.includes(row.kind, row.queue, row.tenant)


ALL = JobFilter()


def kind_names(kind: str) -> list[str]:
    """The kind under all its names; as it is, if it is not known here."""
    declared = registry.find(kind)
    return [kind] if declared is None else [declared.name, *declared.aliases]


def indexed(database: Database, filter: JobFilter) -> list[sa.ColumnElement[bool]]:
    """Conditions that an index answers: with each, the first page is fast, however many jobs there are."""
    column = jobs.c
    conditions: list[sa.ColumnElement[bool]] = []
    if filter.ids is not None:
        conditions.append(database.among(column.id, filter.ids))
    if filter.id_prefix is not None:
        conditions.append(begins_with(column.id, filter.id_prefix))
    if filter.states:
        conditions += _in_states(database, filter)
    if filter.kind is not None:
        names = kind_names(storable(filter.kind))
        conditions.append(column.kind == names[0] if len(names) == 1 else column.kind.in_(names))
    equal = ((column.tenant, filter.tenant), (column.key, filter.key))
    conditions += [column == storable(value) for column, value in equal if value is not None]
    at, _ = filter.order
    bounds = (filter.finished_since, filter.finished_until) if filter.by_end else ()
    since, until = bounds or (filter.enqueued_since, filter.enqueued_until)
    conditions += [] if since is None else [at >= since]
    conditions += [] if until is None else [at < until]
    if filter.finished_until is not None and not filter.by_end:
        conditions.append(at < filter.finished_until)  # no job ends before it is enqueued
    terms, other = filter.terms, job_terms.alias("other")
    conditions += [job_terms.c.term == term for term in terms[:1]]
    for term in terms[1:]:
        has = sa.exists().where(other.c.term == term, other.c.enqueued_at == column.enqueued_at)
        conditions.append(has.where(other.c.job_id == column.id).correlate(jobs))
    return conditions


def parts(database: Database, filter: JobFilter) -> list[list[sa.ColumnElement[bool]]]:
    """Conditions of the parts of a list, each of which an index answers: a job that runs is in no index of lists."""
    elsewhere = filter.terms or filter.by_end or filter.ids is not None or filter.id_prefix or filter.key
    if elsewhere or database.dialect in ("mysql", "mariadb") or filter.states == (State.RUNNING,):
        return [[]]
    # As literals, for the planner to see that an index has them.
    conditions = [NOT_RUNNING]
    if not filter.states or State.RUNNING in filter.states:
        is_running = f"state = '{State.RUNNING}'"
        # SQLite takes all states for equally frequent.
        conditions.append(f"likelihood({is_running}, 0.001)" if database.dialect == "sqlite" else is_running)
    return [[sa.text(condition)] for condition in conditions]  # type: ignore[list-item]


def source(filter: JobFilter) -> sa.FromClause:
    """Source of the conditions: jobs, joined with the first term if the filter has any."""
    return job_terms.join(jobs, jobs.c.id == job_terms.c.job_id) if filter.terms else jobs


def _in_states(database: Database, filter: JobFilter) -> list[sa.ColumnElement[bool]]:
    # As literals: an index of some states only is of use if the planner sees them.
    column = jobs.c.state
    states: list[sa.ColumnElement[str]] = [
        sa.literal_column(f"'{State(state)}'") for state in sorted(set(filter.states))
    ]
    condition = column == states[0] if len(states) == 1 else column.in_(states)
    if database.dialect != "sqlite":
        return [condition]
    # SQLite uses such an index only if its condition is there word for word.
    if filter.by_end:
        return [condition, sa.text(ENDED_WITHOUT_SUCCESS)]  # type: ignore[list-item]
    is_uncommon = {State.SUCCEEDED, State.RUNNING}.isdisjoint(filter.states)
    return [condition, sa.text(UNCOMMON_STATE)] if is_uncommon else [condition]  # type: ignore[list-item]


def unindexed(filter: JobFilter) -> list[sa.ColumnElement[bool]]:
    """Conditions for which each row must be read: apply them to a bounded number of rows."""
    column = jobs.c
    conditions: list[sa.ColumnElement[bool]] = []
    equal = ((column.queue, filter.queue), (column.worker, filter.worker))
    conditions += [column == storable(value) for column, value in equal if value is not None]
    if filter.engine is not None:
        conditions.append(column.worker.in_(sa.select(workers.c.name).where(workers.c.engine == filter.engine)))
    enqueued = (column.enqueued_at, filter.enqueued_since, filter.enqueued_until)
    time, since, until = (
        enqueued if filter.by_end else (column.finished_at, filter.finished_since, filter.finished_until)
    )
    conditions += [] if since is None else [time >= since]
    conditions += [] if until is None else [time < until]
    if filter.error_class is not None:
        name = filter.error_class
        starts = column.error.startswith(f"{name}:", autoescape=True)
        whole = sa.or_(column.error == name, starts)
        within = column.error.regexp_match(rf"^[A-Za-z0-9_.]+\.{re.escape(name)}(:|$)")
        conditions.append(sa.or_(whole, within))
    if filter.error is not None:
        text = storable(filter.error)
        # SQLite takes no longer pattern, and nothing of that length is stored.
        too_long = len(text) > LONGEST_ERROR
        conditions.append(sa.false() if too_long else column.error.icontains(text, autoescape=True))
    scope = filter.scope
    if scope.kinds is not None:
        conditions.append(may_match(column.kind, scope.kinds))
    if scope.queues is not None:
        conditions.append(may_match(column.queue, scope.queues))
    if scope.tenants is not None:
        conditions.append(column.tenant.in_(scope.tenants))
    return conditions


def _check_fields(kind: str | None, names: list[str]) -> None:
    if kind is None:
        raise ValueError("fields are searched in jobs of one kind; name it")
    declared = registry.find(kind)
    if declared is None:
        raise ValueError(f"the kind {kind!r} is not known here, so its searchable fields are not either; import it")
    if missing := [name for name in names if name not in declared.search]:
        among = ", ".join(declared.search) or "none"
        raise ValueError(f"{missing[0]!r} is not a searchable field of {declared.name}; search=(…) declares: {among}")
