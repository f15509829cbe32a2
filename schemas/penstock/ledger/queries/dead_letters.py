"""Dead letters on record: lists, and one with everything that a decision about it needs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from penstock.config.errors import JobNotFound
from penstock.ledger.queries.failure_groups import Group as Group
from penstock.ledger.queries.failure_groups import groups as groups
from penstock.ledger.queries.scope import EVERYTHING, SCOPED, UNREAD, Scope
from penstock.ledger.queries.selection import OPEN, PLACED, WITH_JOBS, matching, read_page
from penstock.ledger.queries.selection import Selection as Selection
from penstock.ledger.rows import audit
from penstock.ledger.rows.attempts import history
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import dead_letters, jobs
from penstock.schemas.jobs.kind import registry
from penstock.schemas.jobs.sensitive import HIDDEN
from penstock.schemas.wire.codec import payload


@dataclass(frozen=True, slots=True)
class DeadLetterDetails:
    """Dead letter with its message, job, attempts and decisions.

    Attributes:
        row: its row, with the bytes as they came.
        headers: of a message that never became a job, without values that may be sensitive.
        payload: the fields, sensitive ones hidden; all are hidden if the kind is not known here, or has sensitive
            fields and cannot read it.
        job: the job's row; None if the ledger has none.
        attempts: rows, the first one first.
        decisions: from the audit log, the newest first.
    """

    row: Any
    headers: dict[str, Any] | None
    payload: dict[str, Any]
    job: Any
    attempts: Sequence[Any]
    decisions: Sequence[audit.Act]


def find(
    database: Database, selection: Selection = OPEN, *, before: str | None = None, limit: int = 50
) -> Sequence[Any]:
    """Rows of dead letters, the newest first, without headers and bytes; with the keys and tenants of their jobs.

    Arguments:
        before: the id of one: only those that come after it in this order.

    Raises:
        JobNotFound: no dead letter has the id `before`.
    """
    columns = [column for column in dead_letters.c if column.name not in ("raw", "headers")]
    if selection.scope.tenants is not None:
        select = sa.select(*columns, jobs.c.key, jobs.c.tenant, UNREAD).select_from(WITH_JOBS)
    else:  # a join of all that match, before the page is taken, may read all jobs
        of_job = [
            sa.select(column).where(jobs.c.id == dead_letters.c.id).scalar_subquery().label(column.name)
            for column in (jobs.c.key, jobs.c.tenant)
        ]
        select = sa.select(*columns, *of_job, UNREAD)
    select = select.where(*matching(database, selection), *selection.scope.conditions())

    def find_page(connection: sa.Connection) -> list[Any]:
        last = None
        if before is not None:
            placed = sa.select(*PLACED, *SCOPED).select_from(WITH_JOBS).where(dead_letters.c.id == before)
            last = connection.execute(placed).first()
            if last is None or not selection.scope.includes_dead_letter(last):
                raise JobNotFound(f"no dead letter has the id {before}")
        return read_page(connection, select, selection, limit, newest_first=True, last=last)

    return database.read(find_page)


def show(database: Database, dead_letter_id: str, *, scope: Scope = EVERYTHING) -> DeadLetterDetails:
    """A dead letter with its message, its attempts, and the decisions about it.

    Raises:
        JobNotFound: no dead letter has this id, or it is outside of the scope.
    """

    def read_details(connection: sa.Connection) -> DeadLetterDetails:
        row = connection.execute(sa.select(dead_letters).where(dead_letters.c.id == dead_letter_id)).first()
        scoped = sa.select(*SCOPED).select_from(WITH_JOBS).where(dead_letters.c.id == dead_letter_id)
        if row is None or not scope.includes_dead_letter(connection.execute(scoped).one()):
            raise JobNotFound(f"no dead letter has the id {dead_letter_id}")
        job = connection.execute(sa.select(jobs).where(jobs.c.id == dead_letter_id)).first()
        ran = sa.select(history).where(history.c.job_id == dead_letter_id).order_by(history.c.fence)
        if row.raw is not None:
            content = payload(row.raw)
        elif job is not None:
            content = json.loads(job.payload) or {}
        else:
            content = {}
        return DeadLetterDetails(
            row,
            None if row.headers is None else _without_values(json.loads(row.headers)),
            registry.redact(row.kind, content),
            job,
            connection.execute(ran).all(),
            audit.read(connection, subject=dead_letter_id, limit=1000),
        )

    return database.read(read_details)


def _without_values(headers: dict[str, Any]) -> dict[str, Any]:
    """Stock clients put the arguments' text into the headers, where sensitive values cannot be told apart."""
    return {name: HIDDEN if name in ("argsrepr", "kwargsrepr") else value for name, value in headers.items()}
