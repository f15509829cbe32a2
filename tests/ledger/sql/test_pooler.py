"""PostgreSQL behind PgBouncer in transaction mode: no prepared statements, and notifications over a direct URL."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa
from support.ledgers import Note, claimed, end, message, set_up
from support.polling import retry, until
from support.servers.databases import PgBouncer

from penstock.config.errors import ConfigError, LedgerUnavailable
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import OUTBOX_CHANNEL, jobs
from penstock.schemas import Outcome
from penstock.workers.dispatcher.outbox.notifications import Notifications
from penstock.workers.executor.attempt.session import Sessions

pytestmark = pytest.mark.postgres
PREPARED = sa.text("SELECT count(*) FROM pg_prepared_statements")


@pytest.fixture
def bouncer(postgres_url: str) -> Iterator[PgBouncer]:
    bouncer = PgBouncer(postgres_url, pool_size=2)
    bouncer.start()
    yield bouncer
    bouncer.close()


@pytest.fixture
def pooled(bouncer: PgBouncer) -> Iterator[Database]:
    database = Database(set_up(bouncer.url))
    yield database
    database.close()


def test_a_ledger_behind_pgbouncer_runs_jobs_without_prepared_statements(pooled: Database) -> None:
    def run(_number: int) -> None:
        claim = claimed(pooled, message(Note()))
        assert end(pooled, claim, Outcome.DEAD, error="oh", reason="failed")

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(run, range(200)))
    count = sa.select(sa.func.count()).where(jobs.c.state == "dead")
    assert pooled.read(lambda connection: connection.execute(count).scalar_one()) == 200
    assert pooled.read(lambda connection: connection.execute(PREPARED).scalar_one()) == 0


def test_sessions_behind_pgbouncer_make_no_prepared_statements(pooled: Database) -> None:
    sessions = Sessions(pooled, "w1", 4)

    async def ask_often() -> int:
        prepared = 0
        for _ in range(20):
            async with sessions.open_async() as session:
                prepared += (await session.execute(PREPARED)).scalar_one()
        return prepared

    async def run() -> None:
        assert await asyncio.gather(*(ask_often() for _ in range(8))) == [0] * 8
        await sessions.close()

    for _ in range(20):
        with sessions.open() as session:
            assert session.execute(PREPARED).scalar_one() == 0
    asyncio.run(run())


def test_a_pgbouncer_that_was_restarted_is_connected_to_again(bouncer: PgBouncer, pooled: Database) -> None:
    claim = claimed(pooled, message(Note()))
    bouncer.stop()
    bouncer.start()

    def is_recorded() -> bool:
        return end(pooled, claim, Outcome.SUCCEEDED)

    assert retry(is_recorded, LedgerUnavailable)


def test_notifications_need_a_direct_url_behind_pgbouncer(pooled: Database, postgres_url: str) -> None:
    assert not Notifications.possible(pooled)
    assert Notifications.possible(pooled, postgres_url)
    wakeup = threading.Event()
    notifications = Notifications(pooled, wakeup, postgres_url)
    notifications.start()
    try:
        until(wakeup.is_set, "the connection")
        wakeup.clear()

        def notify(connection: sa.Connection) -> None:
            connection.exec_driver_sql(f"NOTIFY {OUTBOX_CHANNEL}")

        pooled.write(notify)
        until(wakeup.is_set, "the notification")
    finally:
        notifications.stop()
        assert notifications.join(60)


def test_a_direct_ledger_is_notified_over_its_own_url(postgres_url: str) -> None:
    database = Database(postgres_url)
    assert Notifications.possible(database)
    database.close()


def test_another_value_of_the_parameter_is_refused(postgres_url: str) -> None:
    with pytest.raises(ConfigError, match="write pgbouncer=true"):
        Database(f"{postgres_url}?pgbouncer=yes")
