"""Arrows that the ledger declares, and those that its rows walk."""

from __future__ import annotations

import importlib
import pkgutil

import sqlalchemy as sa

from penstock.ledger import retention, transitions
from penstock.ledger.rows.arrows import Arrow
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import jobs
from penstock.schemas import State

Change = tuple[State | None, State | None]
"""The state before and after; None: not on record."""


def declared() -> dict[str, tuple[Arrow, ...]]:
    """File, such as `transitions/claim.py` → its arrows."""
    files: dict[str, tuple[Arrow, ...]] = {}
    for package in (transitions, retention):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            arrows = getattr(importlib.import_module(module.name), "ARROWS", None)
            if arrows is not None:
                files[module.name.removeprefix("penstock.ledger.").replace(".", "/") + ".py"] = arrows
    return files


class Watch:
    """Learns which arrows the rows of a ledger walk. A row has walked one if its state differs, or its fence.

    Attributes:
        walked: changes so far.
    """

    def __init__(self) -> None:
        self.walked: set[Change] = set()
        self._rows: dict[str, tuple[State, int]] = {}

    def restart(self, database: Database) -> None:
        """Take the rows as they are, and forget what was walked."""
        self.walked.clear()
        self._rows = _read(database)

    def look(self, database: Database) -> None:
        """Add the changes since the last look."""
        before, self._rows = self._rows, _read(database)
        for job_id in before.keys() | self._rows.keys():
            old, new = before.get(job_id), self._rows.get(job_id)
            if old != new:
                self.walked.add((old and old[0], new and new[0]))


def _read(database: Database) -> dict[str, tuple[State, int]]:
    select = sa.select(jobs.c.id, jobs.c.state, jobs.c.fence)
    rows = database.read(lambda connection: connection.execute(select).all())
    return {row.id: (State(row.state), row.fence) for row in rows}
