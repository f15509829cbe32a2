"""Discarding dead letters: it closes them with a reason, and their jobs stay dead."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from penstock.ledger.queries.selection import Selection
from penstock.ledger.rows import audit
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import dead_letters
from penstock.ledger.transitions.replay.plan import (
    DEAD_LETTER,
    ReplayResult,
    for_selection,
    in_batches,
    plan_discard,
    rows_by_id,
)
from penstock.ledger.transitions.replay.revive import close


def discard(
    database: Database,
    selection: Selection,
    *,
    actor: str,
    reason: str,
    dry_run: bool = False,
    limit: int | None = None,
) -> list[ReplayResult]:
    """Close dead letters, the oldest first. They stay on record, and their jobs dead.

    Arguments:
        reason: not empty. The audit log keeps it.
        dry_run, limit: as for `replay`.
    """
    if not reason.strip():
        raise ValueError("discarding a dead letter needs a reason")
    detail = {**selection.filters, "why": reason}

    def discard_ids(ids: Sequence[str]) -> list[ReplayResult]:
        entry = audit.Entry(
            database,
            actor=actor,
            act="discard",
            subject_kind="dead letter",
            detail=detail,
            single_subject=len(ids) == 1,
        )

        def plan(connection: sa.Connection, batch: Sequence[str], *, lock: bool) -> list[ReplayResult]:
            rows = rows_by_id(connection, database, sa.select(*DEAD_LETTER), dead_letters.c.id, batch, lock)
            return [plan_discard(id, rows.get(id)) for id in batch]

        def look_only(batch: Sequence[str], _done: int) -> list[ReplayResult]:
            return database.read(lambda connection: plan(connection, batch, lock=False))

        def apply(batch: Sequence[str], _done: int) -> list[ReplayResult]:
            def close_and_audit(connection: sa.Connection) -> tuple[list[ReplayResult], str | None]:
                results = plan(connection, batch, lock=True)
                done = [result.id for result in results if result.problem is None]
                close(connection, database, done, "discarded_at")
                return results, entry.write(connection, done)

            results, entry.line = database.write(close_and_audit)
            return results

        return in_batches(ids, look_only if dry_run else apply)

    return for_selection(database, selection, limit, discard_ids)
