"""Folding: dispatchers add up the rates of all sources, into rows for one minute, ten minutes, an hour and a day each,
and into rows of all kinds and queues together.

A query reads few rows of long spans, those of short ones at the edges, and those that are not folded yet. Short spans
are kept for a day at most.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from penstock.ledger.rows.rates.counting import (
    KEPT,
    OF_SOURCE,
    SPANS,
    TOTALS,
    Cell,
    Tally,
    row_of,
    tally_of,
    this_minute,
)
from penstock.ledger.sql.clock import from_now
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import rates, workers

BATCH = 500
_SETTLED = timedelta(minutes=2)
"""A source writes a minute until that is over, and once more up to ten seconds later."""
_GIVEN_UP = timedelta(hours=1)

_GONE = sa.delete(rates).where(
    rates.c.span == OF_SOURCE,
    rates.c.minute == sa.bindparam("b_minute"),
    rates.c.cell == sa.bindparam("b_cell"),
    rates.c.source == sa.bindparam("b_source"),
)


def fold(database: Database, *, lease: timedelta, limit: int = BATCH) -> int:
    """Add rows of sources that will not change any more to those of each span. Returns how many there were.

    Several dispatchers may do so at a time: the second one waits for the rows of the first, and finds them gone.

    Arguments:
        lease: of workers. One that is silent may not know whether its last write is done, and may write it again; its
            rows wait until it is back, or for an hour.
    """
    silent = sa.exists().where(
        workers.c.name == rates.c.source,
        workers.c.stopped_at.is_(None),
        workers.c.lease_until.between(from_now(-_GIVEN_UP), from_now()),
    )
    settled = rates.c.span == OF_SOURCE, rates.c.written_at < from_now(-_SETTLED - lease), ~silent
    order = rates.c.minute, rates.c.cell, rates.c.source
    select = sa.select(rates).where(*settled).order_by(*order).limit(limit)
    if database.read(lambda connection: connection.execute(select.limit(1)).first()) is None:
        return 0

    def fold_rows(connection: sa.Connection) -> int:
        rows = connection.execute(database.locked(select)).all()
        if rows:
            _add(connection, database, rows)
            gone = [{"b_minute": row.minute, "b_cell": row.cell, "b_source": row.source} for row in rows]
            connection.execute(_GONE, gone)
        return len(rows)

    return database.write(fold_rows)


def drop_short_spans(database: Database) -> int:
    """Delete rows of short spans that no query reads any more. Returns how many."""

    def drop(connection: sa.Connection) -> int:
        now = this_minute()
        old = [sa.and_(rates.c.span.in_([span, -span]), rates.c.minute < now - kept) for span, kept in KEPT.items()]
        return sum(connection.execute(sa.delete(rates).where(where)).rowcount for where in old)

    return database.write(drop)


def _add(connection: sa.Connection, database: Database, rows: Sequence[Any]) -> None:
    now = connection.execute(sa.select(from_now())).scalar_one()
    tallies = [(row, tally_of(row)) for row in rows]
    for span in (*SPANS, *TOTALS):
        new: defaultdict[tuple[int, Cell], Tally] = defaultdict(Tally)
        for row, tally in tallies:
            cell = ("", "", row.outcome) if span in TOTALS else (row.kind, row.queue, row.outcome)
            new[row.minute // abs(span) * abs(span), cell].merge(tally)
        minutes = sorted({minute for minute, _ in new})
        there = sa.select(rates).where(rates.c.span == span, rates.c.minute.in_(minutes), rates.c.source == "")
        order = rates.c.minute, rates.c.cell
        for row in connection.execute(database.locked(there.order_by(*order))):
            if (folded := new.get((row.minute, (row.kind, row.queue, row.outcome)))) is not None:
                folded.merge(tally_of(row))
        written = [row_of(span, minute, cell, "", tally, now) for (minute, cell), tally in new.items()]
        connection.execute(database.upsert(rates), written)
