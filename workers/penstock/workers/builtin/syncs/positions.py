"""Position of a sync, in `penstock_sync_cursors`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Column, Connection, Integer, MetaData, Table, insert, select, update

from penstock.ledger.sql.types import INSTANT
from penstock.workers.builtin.syncs.columns import KEY, TEXT

CURSORS = Table(
    "penstock_sync_cursors",
    MetaData(),
    Column("name", KEY, primary_key=True),
    Column("cursor", TEXT, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("updated_at", INSTANT, nullable=False),
)


class PositionConflict(Exception):
    """Another run of the same sync has saved a page in the meantime; nothing of ours was written."""


@dataclass(frozen=True, slots=True)
class SyncPosition:
    """Progress of a sync.

    Attributes:
        page: the cursor, number or URL of the page to fetch next; None: the first.
        since: the greatest change of the last finished pass, sent with each request of this one.
        seen: the greatest change of this pass so far. It counts once the pass is done: pages may be in any order.
        until: the upper bound of this pass, as it is sent.
        job: the job whose full pass is under way.
        records, pages: how many this pass has had; None: its beginning is not known.
        bad: records of this pass that were left out.
        revision: rises by one with each page saved.
    """

    page: str | None = None
    since: str | None = None
    seen: str | None = None
    until: str | None = None
    job: str | None = None
    records: int | None = None
    pages: int | None = None
    bad: int = 0
    revision: int = 0

    def restarted(self, job: str | None = None) -> SyncPosition:
        """From the first page; as a full pass of a job, without what was known."""
        return SyncPosition(since=None if job else self.since, until=self.until, job=job, revision=self.revision)

    def fetched(self, records: int) -> tuple[int | None, int | None]:
        """Records and pages of this pass with a page of so many records; None: its beginning is not known."""
        if self.page is not None and (self.records is None or self.pages is None):
            return None, None
        return (self.records or 0) + records, (self.pages or 0) + 1


def read_position(connection: Connection, name: str) -> SyncPosition | None:
    """The position of a sync; None if it has none yet."""
    row = connection.execute(select(CURSORS.c.cursor, CURSORS.c.revision).where(CURSORS.c.name == name)).one_or_none()
    if row is None:
        return None
    # A newer worker may have written more.
    names = {field.name for field in fields(SyncPosition)}
    kept = {key: value for key, value in json.loads(row.cursor).items() if key in names}
    return SyncPosition(**{**kept, "revision": row.revision})


def insert_position(connection: Connection, name: str) -> None:
    connection.execute(insert(CURSORS).values(name=name, **_columns(SyncPosition())))


def move_position(connection: Connection, name: str, before: SyncPosition, after: SyncPosition) -> SyncPosition:
    """Save a position, and lock it until the end of the transaction, so that two runs cannot write pages at a time.

    Raises:
        PositionConflict: the position is no longer `before`.
    """
    after = replace(after, revision=before.revision + 1)
    moved = connection.execute(
        update(CURSORS).where(CURSORS.c.name == name, CURSORS.c.revision == before.revision).values(**_columns(after))
    )
    if moved.rowcount != 1:
        raise PositionConflict(name)
    return after


def _columns(position: SyncPosition) -> dict[str, Any]:
    kept = asdict(position)
    revision = kept.pop("revision")
    return {"cursor": json.dumps(kept), "revision": revision, "updated_at": datetime.now(UTC)}
