"""Ids of jobs by their beginning, as people copy them."""

from __future__ import annotations

import re
from collections.abc import Sequence

import sqlalchemy as sa

from penstock.config.errors import AmbiguousId, JobNotFound
from penstock.ledger.queries.scope import EVERYTHING, Scope
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import dead_letters, jobs
from penstock.ledger.sql.text import storable

MOST = 100
"""Candidates that are counted."""

SHORTEST = 4
"""Characters of a prefix: fewer are of many jobs, and would be typed by mistake."""

_UUID = "00000000-0000-0000-0000-000000000000"
_PREFIX = re.compile(r"[0-9a-f-]{1,35}")


def begins_with(column: sa.Column[str], prefix: str) -> sa.ColumnElement[bool]:
    """Condition that an index answers. What is not the beginning of a UUID is taken for a whole id: a database may not
    sort texts byte by byte, so that it would have to look at all of them."""
    if _PREFIX.fullmatch(prefix) and [c == "-" for c in prefix] == [c == "-" for c in _UUID[: len(prefix)]]:
        rest = _UUID[len(prefix) :]
        return column.between(prefix + rest, prefix + rest.replace("0", "f"))
    return column == storable(prefix)


def full_id(database: Database, id: str, *, scope: Scope = EVERYTHING, strict: bool = True) -> str:
    """The id of the one job or dead letter whose id begins so, if it is a UUID. An id that is on record as it is wins.

    Arguments:
        strict: False: an id of which nothing is on record is returned as it is.

    Raises:
        JobNotFound: none begins so, or it is outside of the scope. AmbiguousId: several do.
    """

    def read_ids(connection: sa.Connection) -> set[str]:
        ids: set[str] = set()
        exact = len(id) == len(_UUID)
        for table in (jobs, dead_letters):
            tenant = table.c.tenant if table is jobs else sa.null().label("tenant")
            select = sa.select(table.c.id, table.c.kind, table.c.queue, tenant.label("tenant"))
            rows = connection.execute(select.where(table.c.id == storable(id))).all()
            if not rows and not exact and len(id) >= SHORTEST:
                rows = connection.execute(select.where(begins_with(table.c.id, id)).limit(MOST + 1)).all()
            ids |= {row.id for row in rows if row.id.startswith(id) and scope.includes(row.kind, row.queue, row.tenant)}
        return {id} if id in ids else ids

    ids = database.read(read_ids)
    if len(ids) == 1:
        return ids.pop()
    if ids:
        number = f"more than {MOST}" if len(ids) > MOST else str(len(ids))
        raise AmbiguousId(f"{number} jobs have ids that begin with {id}; give more of it")
    if not strict:
        return id
    raise JobNotFound(f"no job with the id {id} is recorded in the ledger")


def recorded_ids(database: Database, ids: Sequence[str]) -> set[str]:
    """The ids, of these, that a job or a dead letter on record has."""

    def read_ids(connection: sa.Connection) -> set[str]:
        recorded: set[str] = set()
        for start in range(0, len(ids), MOST):
            for table in (jobs, dead_letters):
                condition = database.among(table.c.id, list(map(storable, ids[start : start + MOST])))
                recorded |= set(connection.scalars(sa.select(table.c.id).where(condition)))
        return recorded

    return database.read(read_ids)
