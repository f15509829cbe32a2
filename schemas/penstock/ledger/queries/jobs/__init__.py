"""Jobs on record: lists, one job with its attempts, counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from penstock.config.errors import JobNotFound
from penstock.ledger.queries.jobs.filter import ALL as ALL
from penstock.ledger.queries.jobs.filter import JobFilter as JobFilter
from penstock.ledger.queries.jobs.filter import kind_names as kind_names
from penstock.ledger.queries.jobs.pages import LISTED as LISTED
from penstock.ledger.queries.jobs.pages import Page as Page
from penstock.ledger.queries.jobs.pages import count as count
from penstock.ledger.queries.jobs.pages import each as each
from penstock.ledger.queries.jobs.pages import each_page as each_page
from penstock.ledger.queries.jobs.pages import find as find
from penstock.ledger.queries.jobs.pages import find_page as find_page
from penstock.ledger.queries.jobs.prefixes import full_id as full_id
from penstock.ledger.queries.jobs.prefixes import recorded_ids as recorded_ids
from penstock.ledger.queries.jobs.related import related as related
from penstock.ledger.queries.jobs.waiting import find_waiting as find_waiting
from penstock.ledger.rows.attempts import history
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import jobs
from penstock.schemas.states import State


def show(database: Database, job_id: str) -> tuple[Any, Sequence[Any]]:
    """A job's whole row and its attempts, the first one first. Raises JobNotFound."""

    def read_job(connection: sa.Connection) -> tuple[Any, Sequence[Any]]:
        row = connection.execute(sa.select(jobs).where(jobs.c.id == job_id)).first()
        select = sa.select(history).where(history.c.job_id == job_id).order_by(history.c.fence)
        return row, connection.execute(select).all()

    row, attempts = database.read(read_job)
    if row is None:
        raise JobNotFound(f"no job with the id {job_id} is recorded in the ledger")
    return row, attempts


def counts(database: Database, states: Sequence[State]) -> dict[str, dict[str, int]]:
    """How many jobs are recorded in these states: queue, then state, then the number."""
    select = sa.select(jobs.c.queue, jobs.c.state, sa.func.count()).where(jobs.c.state.in_(states))
    counted: dict[str, dict[str, int]] = {}
    for queue, state, number in database.read(
        lambda connection: connection.execute(select.group_by(jobs.c.queue, jobs.c.state)).all()
    ):
        counted.setdefault(queue, {})[state] = number
    return counted
