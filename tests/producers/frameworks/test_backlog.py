"""How much waits in the outboxes, as operators see it on the gateway's metrics."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from prometheus_client import generate_latest
from support.ledgers import Note
from support.polling import until_async

from penstock.config.errors import LedgerUnavailable
from penstock.config.settings import Settings
from penstock.ledger.queries.stats import Backlog, backlog
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import outbox
from penstock.producers.gateway import create_app
from penstock.producers.outbox import Outbox, create_outbox


def write(database: Database, count: int, age: timedelta = timedelta()) -> None:
    def insert_old_rows(connection: sa.Connection) -> None:
        for _ in range(count):
            handle = Outbox().enqueue(connection, Note())
            update = sa.update(outbox).where(outbox.c.id == handle.id)
            connection.execute(update.values(created_at=datetime.now(UTC) - age))

    database.write(insert_old_rows)


def test_a_backlog_is_its_jobs_and_the_age_of_the_first(ledger: Database) -> None:
    assert backlog(ledger) == Backlog(0, timedelta())
    write(ledger, 2, timedelta(hours=1))
    write(ledger, 1)
    rows = backlog(ledger)
    assert rows.jobs == 3
    assert timedelta(minutes=59) < rows.lag < timedelta(hours=2)
    ledger.write(lambda connection: connection.execute(sa.delete(outbox)))
    write(ledger, 1, timedelta(hours=-1))  # a clock that is ahead
    assert backlog(ledger) == Backlog(1, timedelta())


def test_a_database_without_an_outbox_has_no_backlog(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'empty.db'}")
    with pytest.raises(LedgerUnavailable):
        backlog(database)
    database.close()


async def metrics(app: FastAPI) -> str:
    transport = httpx.ASGITransport(app)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://gw") as client:

        def are_read() -> bool:
            return generate_latest(app.state.deps.metrics.registry).count(b"penstock_outbox_jobs{") == 2

        await until_async(are_read, "the sizes of both outboxes")
        return (await client.get("/metrics")).text


def test_the_gateways_metrics_have_those_of_every_outbox(
    ledger: Database, ledger_url: str, redis_url: str, prefix: str, tmp_path: Path
) -> None:
    shop = Database(f"sqlite:///{tmp_path / 'shop.db'}")
    create_outbox(shop.engine)
    write(ledger, 1)
    write(shop, 2, timedelta(hours=1))
    urls = (shop.url, "postgresql+psycopg://u:hidden@127.0.0.1:9/away")
    settings = Settings(
        broker_url=redis_url,
        database_url=ledger_url,
        prefix=prefix,
        outbox_urls=urls,
        token_secret="only for tests, only for tests",
    )
    text = asyncio.run(metrics(create_app(settings)))
    shop.close()
    path = str(tmp_path / "shop.db").lstrip("/")
    assert 'penstock_outbox_jobs{outbox="ledger"} 1.0' in text
    assert f'penstock_outbox_jobs{{outbox="/{path}"}} 2.0' in text
    [lag] = [line for line in text.splitlines() if line.startswith(f'penstock_outbox_lag_seconds{{outbox="/{path}"}}')]
    assert 3500 < float(lag.split()[1]) < 7200
    assert "away" not in text
    assert "hidden" not in text
