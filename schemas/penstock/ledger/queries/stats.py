"""Sizes of the ledger's tables and outboxes, and when its jobs are pruned."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from penstock.config.errors import LedgerUnavailable
from penstock.config.sections.retention import RetentionSettings
from penstock.config.settings import redact_url
from penstock.ledger.sql.clock import from_now
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import jobs, metadata, outbox
from penstock.schemas.states import FINAL, State


@dataclass(frozen=True, slots=True)
class TableStats:
    """Size of a table. `bytes` counts its indexes too; None where the database does not report it."""

    table: str
    rows: int
    bytes: int | None


@dataclass(frozen=True, slots=True)
class StateStats:
    """The jobs of one state.

    Attributes:
        oldest: when the first of them was enqueued.
        kept: how long they are kept after their end; None: for ever, or they have not ended.
        next_prune: when the first of them expires; the dispatcher's next pass after that prunes it.
    """

    state: State
    jobs: int
    oldest: datetime | None
    kept: timedelta | None
    next_prune: datetime | None


@dataclass(frozen=True, slots=True)
class OutboxStats:
    """Backlog of an outbox.

    Attributes:
        outbox: the URL of its database, without the password.
        jobs: committed and not sent; None where it cannot be asked.
        lag_seconds: how long the first of them has been there.
        trouble: why it cannot be asked.
    """

    outbox: str
    jobs: int | None
    lag_seconds: float | None
    trouble: str | None = None


@dataclass(frozen=True, slots=True)
class Backlog:
    """Rows of an outbox that are committed and not sent.

    Attributes:
        jobs: how many; those that a dispatcher is sending right now count.
        lag: how long the first of them has been there; zero where there is none.
    """

    jobs: int
    lag: timedelta


def backlog(database: Database, *, most: int | None = None) -> Backlog:
    """Backlog of the outbox in a database.

    Arguments:
        most: rows are counted up to this; None: all.

    Raises:
        LedgerUnavailable: the database cannot be reached, or has no outbox.
    """

    def read_backlog(connection: sa.Connection) -> Backlog:
        counted = sa.select(outbox.c.position).limit(most).subquery()
        count = connection.execute(sa.select(sa.func.count()).select_from(counted)).scalar_one()
        first = sa.select(outbox.c.created_at, from_now().label("now")).order_by(outbox.c.position).limit(1)
        row = connection.execute(first).first()
        # The application's clock may be ahead of the database's.
        return Backlog(count, timedelta() if row is None else max(row.now - row.created_at, timedelta()))

    return database.read(read_backlog)


def outbox_name(url: str) -> str:
    """Host and database of an outbox, without the user: metrics and alerts are read by many."""
    parsed = sa.make_url(url)
    return f"{parsed.host or ''}/{(parsed.database or '').lstrip('/')}"


def tables(database: Database) -> list[TableStats]:
    """Every table of the ledger. Counts rows, which takes a while where there are many millions."""

    def read_tables(connection: sa.Connection) -> list[TableStats]:
        sizes = _sizes(connection, database.dialect)
        stats = []
        for table in sorted(metadata.sorted_tables, key=lambda table: table.name):
            rows = connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()
            stats.append(TableStats(table.name, rows, sizes.get(table.name)))
        return stats

    return database.read(read_tables)


def states(database: Database, retention: RetentionSettings) -> list[StateStats]:
    """Every state, in the order jobs pass through them."""
    oldest, ended = sa.func.min(jobs.c.enqueued_at), sa.func.min(jobs.c.finished_at)
    select = sa.select(jobs.c.state, sa.func.count().label("jobs"), oldest.label("oldest"), ended.label("ended"))
    grouped = select.group_by(jobs.c.state)
    rows = {row.state: row for row in database.read(lambda connection: connection.execute(grouped).all())}
    stats = []
    for state in State:
        row = rows.get(state)
        kept: timedelta | None = getattr(retention, state.value) if state in FINAL else None
        over = row.ended + kept if row is not None and kept is not None and row.ended is not None else None
        stats.append(StateStats(state, row.jobs if row else 0, row.oldest if row else None, kept, over))
    return stats


def outboxes(database: Database, urls: Iterable[str], *, most: int | None = None) -> list[OutboxStats]:
    """The outbox in the ledger's database, and those at these URLs.

    Arguments:
        most: jobs of each are counted up to this; None: all.
    """
    stats = []
    for url in dict.fromkeys((database.url, *urls)):
        other = database if url == database.url else Database(url, private=False)
        try:
            there = backlog(other, most=most)
            stats.append(OutboxStats(redact_url(url), there.jobs, round(there.lag.total_seconds(), 3)))
        except LedgerUnavailable as error:
            stats.append(OutboxStats(redact_url(url), None, None, str(error)))
        finally:
            if other is not database:
                other.close()
    return stats


_SIZES = {
    "postgresql": "SELECT relname, pg_total_relation_size(oid) FROM pg_class"
    " WHERE relkind = 'r' AND relnamespace = current_schema()::regnamespace",
    "mariadb": "SELECT table_name, data_length + index_length FROM information_schema.tables"
    " WHERE table_schema = DATABASE()",
    "sqlite": "SELECT m.tbl_name, SUM(s.pgsize) FROM dbstat s JOIN sqlite_master m ON m.name = s.name"
    " GROUP BY m.tbl_name",
}


def _sizes(connection: sa.Connection, dialect: str) -> dict[str, int]:
    try:
        rows = connection.exec_driver_sql(_SIZES["mariadb" if dialect == "mysql" else dialect])
        return {name: int(size) for name, size in rows}
    except DBAPIError:  # SQLite is often built without dbstat, and others may be kept from looking
        return {}
