"""Retention: how fast a pass deletes expired jobs, on each ledger, with the rests of one that is behind.

A dispatcher's own pass rests after each batch, for longer in its first five minutes, in which it has time. The jobs
have succeeded, with a payload and a result; one in twenty failed once before.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa

from benchmarks.plan import Plan, say
from benchmarks.tables import Table
from penstock.config.sections.retention import RetentionSettings
from penstock.ledger.retention.pruning import BATCH, Pruning
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import attempts, jobs
from penstock.ledger.sql.upgrade import upgrade
from penstock.ledger.transitions.due import waiting
from penstock.producers.storage import make_storage
from penstock.schemas import Job
from penstock.schemas.states import Outcome, State
from penstock.schemas.wire.codec import encode
from penstock.schemas.wire.ids import first_id
from penstock.workers.dispatcher.pruning import SHORT_REST

MARIADB_URL = os.environ.get("PENSTOCK_BENCH_MARIADB_URL", "mysql+pymysql://root@127.0.0.1:3306/mysql")
JOBS = 30_000
ARRIVALS = 1000.0


class Receipt(Job, kind="bench.receipt", queue="bench-retention"):
    user: int
    text: str


def ledgers(plan: Plan) -> Table:
    table = Table("Expired jobs deleted by retention, rests included", "jobs/s")
    urls = {"SQLite": f"sqlite:///{plan.servers.folder}/retention.db"}
    if plan.servers.has_postgres:
        urls["PostgreSQL"] = plan.servers.postgres_url
    with _mariadb() as url:
        if url is None:
            table.notes.append("MariaDB is not reachable")
        else:
            urls["MariaDB"] = url
        for number in range(plan.rounds):
            for name, each in urls.items():
                say(f"round {number + 1}/{plan.rounds}: {name}")
                table.limits[name] = ARRIVALS
                table.add(name, _deleted(each, plan.jobs(JOBS)), peer=False)
    return table


def _deleted(url: str, count: int) -> float:
    """Jobs a second."""
    database = Database(url)
    upgrade(database)
    try:
        fill(database, count, datetime.now(UTC) - timedelta(days=400), timedelta(milliseconds=1))
        pruning = Pruning(database, RetentionSettings(), lambda: make_storage("file:none"))
        seconds, deleted = 0.0, 0
        began = time.perf_counter()
        for counts in pruning.steps():
            took = time.perf_counter() - began
            if counts.total():
                seconds, deleted = seconds + took * (1 + SHORT_REST), deleted + counts[State.SUCCEEDED]
            time.sleep(SHORT_REST * took)
            began = time.perf_counter()
        assert deleted == count, f"{deleted} of {count} jobs were deleted"
        return deleted / seconds
    finally:
        database.close()


def fill(database: Database, count: int, began: datetime, apart: timedelta) -> None:
    """Insert so many jobs that have succeeded.

    Arguments:
        began: when the first was enqueued.
        apart: between two of them, at least a millisecond.
    """
    template = waiting(encode(Receipt(user=1, text="twenty-four characters..")))
    for first in range(0, count, BATCH):
        rows, failed = [], []
        for number in range(first, min(first + BATCH, count)):
            at = began + number * apart
            job_id = first_id(at)
            times = {"enqueued_at": at, "due_at": None, "started_at": at, "finished_at": at}
            rows.append({**template, "id": job_id, "state": State.SUCCEEDED, "result": '{"number": 1}', **times})
            if number % 20 == 0:
                failed.append(
                    {"job_id": job_id, "fence": 1, "number": 1, "worker": "w", "started_at": at, "finished_at": at}
                    | {"outcome": Outcome.RETRY, "error": "ValueError: no", "traceback": "Traceback …\n" * 20}
                )
        with database.engine.begin() as connection:
            connection.execute(sa.insert(jobs), rows)
            connection.execute(sa.insert(attempts), failed)


@contextmanager
def _mariadb() -> Iterator[str | None]:
    """URL of an empty database; None: no server answers."""
    name = f"penstock_bench_{uuid.uuid4().hex[:8]}"
    engine = sa.create_engine(MARIADB_URL, isolation_level="AUTOCOMMIT", poolclass=sa.pool.NullPool)
    try:
        with engine.connect() as connection:
            connection.execute(sa.text(f"CREATE DATABASE {name} CHARACTER SET utf8mb4"))
    except sa.exc.SQLAlchemyError as error:
        say(f"not measured: MariaDB ({str(error).splitlines()[0]})")
        yield None
        return
    try:
        yield sa.make_url(MARIADB_URL).set(database=name).render_as_string(hide_password=False)
    finally:
        with engine.connect() as connection:
            connection.execute(sa.text(f"DROP DATABASE {name}"))
