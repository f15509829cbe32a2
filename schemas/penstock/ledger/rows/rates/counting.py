"""Rates: the rows that say what ended in which minute, written by those that ended it.

A worker counts its attempts in memory, and writes its own rows with its heartbeats: the numbers of a whole minute each
time, so that writing them twice counts once. Whatever ends jobs in another way inserts a row in the same transaction.
Dispatchers add these rows up (`retention.folding`).
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from penstock.ledger.rows.rates.histograms import Histogram
from penstock.ledger.sql.clock import from_now
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import rates
from penstock.schemas.states import Outcome
from penstock.schemas.wire.ids import new_id

OF_SOURCE = 0
"""`span` of a row as its source wrote it."""

HOUR, DAY = 60, 24 * 60
KEPT = {1: 3 * HOUR, 10: 27 * HOUR}
"""Span, in minutes → for how many its rows are kept. Those of the other spans are pruned."""
SPANS = (*KEPT, HOUR, DAY)
"""Of folded rows (`retention.folding`)."""
TOTALS = tuple(-span for span in SPANS if span != DAY)
"""`span` of the folded rows of all kinds and queues together, which have neither: a series needs no others."""

OTHER_KIND = "other"
"""Kind of messages that never became a job, if it is none of ours: strangers may name kinds as they like."""

Cell = tuple[str, str, str]
"""Kind, queue and outcome."""


@dataclass(slots=True)
class Tally:
    """Ends of one cell.

    Attributes:
        count: how many.
        run, wait: how long those that ran did so, and how long they had waited.
    """

    count: int = 0
    run: Histogram = field(default_factory=Histogram)
    wait: Histogram = field(default_factory=Histogram)

    def merge(self, other: Tally) -> None:
        self.count += other.count
        self.run.merge([other.run])
        self.wait.merge([other.wait])


def this_minute() -> int:
    """The minute of now, since 1970."""
    return int(time.time() // 60)


def write(
    connection: sa.Connection, database: Database, source: str, tallies: Mapping[tuple[int, Cell], Tally]
) -> None:
    """Write the numbers of a source, in place of those that it wrote for the same minutes before.

    Arguments:
        tallies: by minute and cell.
    """
    if tallies:
        now = connection.execute(sa.select(from_now())).scalar_one()
        rows = [row_of(OF_SOURCE, minute, cell, source, tally, now) for (minute, cell), tally in tallies.items()]
        connection.execute(database.upsert(rates), rows)


def count_ends(connection: sa.Connection, outcome: Outcome, ends: Mapping[tuple[str, str], int]) -> None:
    """Count ends outside of a worker's attempts, in the transaction that ends them.

    Arguments:
        ends: how many by kind and queue.
    """
    if counts := {cell: count for cell, count in ends.items() if count}:
        now, source, minute = datetime.now(UTC), new_id(), this_minute()
        rows = [
            row_of(OF_SOURCE, minute, (kind, queue, outcome), source, Tally(count), now)
            for (kind, queue), count in sorted(counts.items())
        ]
        connection.execute(sa.insert(rates), rows)


def row_of(span: int, minute: int, cell: Cell, source: str, tally: Tally, now: datetime) -> dict[str, Any]:
    kind, queue, outcome = cell
    return {
        "span": span,
        "minute": minute,
        "cell": hashlib.sha256(json.dumps(cell).encode()).hexdigest()[:32],
        "source": source,
        "kind": kind,
        "queue": queue,
        "outcome": str(outcome),
        "count": tally.count,
        "run_ms": tally.run.milliseconds,
        "wait_ms": tally.wait.milliseconds,
        "run": tally.run.pack(),
        "wait": tally.wait.pack(),
        "written_at": now,
    }


def tally_of(row: Any) -> Tally:
    return Tally(row.count, Histogram.unpack(row.run, row.run_ms), Histogram.unpack(row.wait, row.wait_ms))
