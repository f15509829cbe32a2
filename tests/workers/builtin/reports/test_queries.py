"""The query of a report: cancelled at the server, limited, read-only, and judged by its errors."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from support.builtin.sales import Sales, build
from support.builtin.tools import Progress
from support.polling import until
from support.servers.shared import MARIADB_URL, POSTGRES_URL, need

from penstock.config.errors import DatabaseUnavailable, StorageError
from penstock.config.settings import Settings
from penstock.producers.storage import FileStorage
from penstock.schemas.builtin.reports import BuildReport
from penstock.schemas.wire.ids import new_id
from penstock.workers import Context, JobCancelled, Permanent
from penstock.workers.builtin.databases import Databases

TESTS = Path(__file__).parents[3]
ENDLESS = {
    "sqlite": "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT COUNT(*) FROM n /* {mark} */",
    "postgresql": "SELECT pg_sleep(600) FROM {mark}",
    "mysql": "SELECT SLEEP(600) /* {mark} */",
}
RUNNING = {
    "postgresql": "SELECT COUNT(*) FROM pg_locks JOIN pg_class c ON c.oid = relation WHERE c.relname = '{mark}'",
    # The concatenation keeps this query from counting itself.
    "mysql": "SELECT COUNT(*) FROM information_schema.processlist WHERE info LIKE CONCAT('%%/', '* {mark}%%')",
}


def endless(sales: Sales, **report: Any) -> Settings:
    sql = ENDLESS[sales.engine.dialect.name].format(mark=sales.table)
    return sales.settings(sql=sql, parameters={}, columns={}, **report)


def running(sales: Sales) -> int:
    """The number of this test's queries that run at the server."""
    with sales.engine.connect() as connection:
        query = RUNNING[sales.engine.dialect.name].format(mark=sales.table)
        return int(connection.exec_driver_sql(query).scalar_one())


DYING = """
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from support.builtin.sales import Sales, build
from penstock.producers.storage import FileStorage
from penstock.workers import Context
from penstock.workers.builtin.databases import Databases
from penstock.workers.builtin.reports import query
url, table, sql, folder, seconds = sys.argv[1:]
query._MARGIN_SECONDS = 1
ctx = Context(job_id="dying", deadline=None if seconds == "-" else datetime.now(UTC) + timedelta(seconds=int(seconds)))
sales = Sales(url, table)
settings = sales.settings(sql=sql, parameters={}, columns={}, count=False)
build(ctx, sales, Databases(), FileStorage(Path(folder)), settings, parameters={})
"""


class Outcome(threading.Thread):
    """Builds a report in a thread, and keeps its error."""

    def __init__(self, ctx: Context, *arguments: Any, **options: Any) -> None:
        super().__init__(daemon=True)
        self.error: BaseException | None = None
        self._call = lambda: build(ctx, *arguments, **options)
        self.start()

    def run(self) -> None:
        try:
            self._call()
        except BaseException as error:
            self.error = error


@pytest.mark.parametrize("count", [True, False])
def test_the_query_of_a_cancelled_report_ends_in_the_database(
    any_sales: Sales, databases: Databases, storage: FileStorage, count: bool
):
    any_sales.fill(1)
    begun = Progress()
    ctx = Context(job_id=new_id(), sink=begun)
    thread = Outcome(ctx, any_sales, databases, storage, endless(any_sales, count=count), parameters={})
    if any_sales.engine.dialect.name in RUNNING:
        until(lambda: running(any_sales) > 0, "the query")
    else:
        until(lambda: begun.said or count, "the query")
    ctx.cancel()
    until(lambda: not thread.is_alive(), "the report's end")
    assert isinstance(thread.error, JobCancelled)
    if any_sales.engine.dialect.name in RUNNING:
        until(lambda: running(any_sales) == 0, "the end of the query")


def test_a_query_over_its_limit_ends_in_the_database(
    any_sales: Sales, databases: Databases, storage: FileStorage, ctx: Context
):
    any_sales.fill(1)
    configured = endless(any_sales, query_timeout_seconds=0.2)
    with pytest.raises(TimeoutError, match=r"longer than query_timeout_seconds \(0\.2\); let it read less"):
        build(ctx, any_sales, databases, storage, configured, parameters={})
    if any_sales.engine.dialect.name in RUNNING:
        until(lambda: running(any_sales) == 0, "the end of the query")


@pytest.mark.parametrize(("server", "seconds"), [("PostgreSQL", "-"), ("MariaDB", "2")])
def test_the_query_of_a_killed_worker_ends_in_the_database(server: str, seconds: str, tmp_path: Path, prefix: str):
    """PostgreSQL looks for its client; MariaDB knows the time that the job had."""
    need(server)
    sales = Sales({"PostgreSQL": POSTGRES_URL, "MariaDB": MARIADB_URL}[server], f"{prefix}_dying")
    sales.fill(1)
    sql = ENDLESS[sales.engine.dialect.name].format(mark=sales.table)
    command = [sys.executable, "-c", DYING, sales.url, sales.table, sql, str(tmp_path), seconds]
    worker = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(TESTS)})
    try:
        until(
            lambda: running(sales) == 1, "the query", unless=lambda: worker.poll() is not None and "its process ended"
        )
        worker.kill()
        worker.wait()
        until(lambda: running(sales) == 0, "the end of the query")
    finally:
        worker.kill()
        worker.wait()
        sales.drop()


def test_the_count_and_the_rows_are_of_one_snapshot_that_takes_no_writes(
    any_sales: Sales, databases: Databases, storage: FileStorage
):
    with any_sales.engine.connect() as connection:
        if any_sales.engine.dialect.name == "sqlite":
            connection.exec_driver_sql("PRAGMA journal_mode = WAL")
    any_sales.fill(10)

    class Late(Progress):
        def progress(self, job_id: str, done: int, total: int | None, note: str | None) -> None:
            if not self.said:
                with any_sales.engine.begin() as other:
                    other.execute(
                        text(f"INSERT INTO {any_sales.table} SELECT id + 100, name, price, sold FROM {any_sales.table}")
                    )
            super().progress(job_id, done, total, note)

    late = Late()
    result = build(Context(job_id=new_id(), sink=late), any_sales, databases, storage)
    assert (result.rows, late.said[0]) == (10, (0, 10))
    writes = any_sales.settings(sql=f"DELETE FROM {any_sales.table}", parameters={}, columns={}, count=False)
    with pytest.raises(Permanent, match=r"its sql writes|does not take the report's sql"):
        build(Context(job_id=new_id()), any_sales, databases, storage, writes, parameters={})
    assert build(Context(job_id=new_id()), any_sales, databases, storage).rows == 20
    with databases.engine(any_sales.url).begin() as connection:  # the connections of the pool write again
        connection.execute(text(f"DELETE FROM {any_sales.table}"))


def test_eighty_reports_at_once_share_a_few_connections(any_sales: Sales, storage: FileStorage):
    any_sales.fill(3)
    databases = Databases(4)
    threads = [Outcome(Context(job_id=new_id()), any_sales, databases, storage) for _ in range(80)]
    until(lambda: not any(thread.is_alive() for thread in threads), "80 reports")
    assert [thread.error for thread in threads if thread.error is not None] == []
    databases.close()


def test_an_error_of_the_content_is_permanent(sales: Sales, databases: Databases, storage: FileStorage, ctx: Context):
    need("PostgreSQL")
    for sql in ("SELECT 1 / 0 AS n", "SELECT CAST('x' AS integer)", "SELECT nothing", "SELECT 1 FROM nowhere"):
        configured = sales.settings(sql=sql, parameters={}, columns={}, database_url=POSTGRES_URL)
        with pytest.raises(Permanent, match="does not take the report's sql"):
            build(ctx, sales, databases, storage, configured, parameters={})
    configured = sales.settings(sql="SELECT 'soon' AS sold", parameters={}, columns={"sold": "date"})
    with pytest.raises(Permanent, match="does not take the report's sql"):
        build(ctx, sales, databases, storage, configured, parameters={})


@pytest.mark.parametrize("url", ["postgresql+psycopg://a@127.0.0.1:1/x", "mysql+pymysql://a@127.0.0.1:1/x"])
def test_a_database_that_is_down_is_tried_again_for_days(
    sales: Sales, databases: Databases, storage: FileStorage, ctx: Context, url: str
):
    with pytest.raises(DatabaseUnavailable, match="report 'daily_sales': the database does not answer now"):
        build(ctx, sales, databases, storage, sales.settings(database_url=url))
    for error in (DatabaseUnavailable, StorageError, ConnectionRefusedError):
        policy = BuildReport.kind().retry.for_error(error)
        waits = [policy.model_copy(update={"jitter": False}).delay(n) for n in range(1, policy.max_attempts)]
        assert sum(waits, timedelta()) / 2 > timedelta(days=1.5)
        assert BuildReport.kind().retry.exhausted_reason(error, 100, timedelta(hours=73)) is not None
    for error in (RuntimeError, TimeoutError):  # a query over its limit is a TimeoutError
        assert BuildReport.kind().retry.for_error(error).max_attempts == 5


def test_a_report_with_more_rows_than_allowed_is_permanent(
    sales: Sales, databases: Databases, storage: FileStorage, ctx: Context
):
    for count in (True, False):
        with pytest.raises(Permanent, match=r"more rows than max_rows \(19\); let it read less"):
            build(ctx, sales, databases, storage, sales.settings(max_rows=19, count=count))
    assert build(ctx, sales, databases, storage, sales.settings(max_rows=20)).rows == 20
