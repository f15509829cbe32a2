"""Relays of outboxes, and jobs that are committed to them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from penstock.config.settings import Settings
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import outbox
from penstock.producers.outbox import Outbox
from penstock.schemas import Job
from penstock.workers.dispatcher.outbox.relay import OutboxRelay, open_outboxes

OUT = Outbox()


class Export(Job, kind="outbox.export", queue="notes"):
    text: str = ""


def settings_for(broker_url: str, database_url: str, prefix: str, **more: Any) -> Settings:
    more.setdefault("stock_queues", ())
    return Settings(broker_url=broker_url, database_url=database_url, prefix=prefix, **more)


@contextmanager
def relays(settings: Settings, count: int = 1) -> Iterator[list[OutboxRelay]]:
    """Outbox services of as many dispatchers, each with a database of its own as another process has."""
    databases = [Database(settings.database_url) for _ in range(count)]
    services = [service for database in databases for service in open_outboxes(settings, database)]
    for service in services:
        service.start()
    try:
        yield [service for service in services if isinstance(service, OutboxRelay)]
    finally:
        for service in services:
            service.stop()
        for service in services:
            assert service.join(60)
        for database in databases:
            database.close()


def left(database: Database) -> int:
    count = sa.select(sa.func.count()).select_from(outbox)
    return int(database.read(lambda connection: connection.execute(count).scalar_one()))


def enqueue(database: Database, *payloads: Job, **options: Any) -> list[str]:
    with Session(database.engine) as session:
        ids = [OUT.enqueue(session, job, **options).id for job in payloads]
        session.commit()
    return ids
