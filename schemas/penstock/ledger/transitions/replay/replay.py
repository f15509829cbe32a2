"""Replaying dead letters, one or ten thousand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from penstock.config.errors import InvalidJob
from penstock.ledger.members import heartbeats
from penstock.ledger.queries.scope import EVERYTHING, Scope
from penstock.ledger.queries.selection import Selection
from penstock.ledger.rows import audit
from penstock.ledger.sql.database import Database
from penstock.ledger.transitions.replay.plan import (
    Planner,
    ReplayResult,
    check_all_fit,
    database_now,
    for_selection,
    in_batches,
)


def replay(
    database: Database,
    selection: Selection,
    *,
    actor: str,
    edit: Mapping[str, Any] | None = None,
    per_second: float | None = None,
    dry_run: bool = False,
    limit: int | None = None,
) -> list[ReplayResult]:
    """Replay dead letters, the oldest first: their jobs wait in the ledger, due now, with failures and crashes reset.

    A job keeps its id, so its handle finds it. An unread message is read again: a kind, version or field that is
    understood by now is accepted. One that cannot be replayed does not stop the others.

    Arguments:
        actor: for the audit log.
        edit: fields to set in each payload, as JSON values; for one dead letter or one group. None for a name that is
            not a field removes it.
        per_second: how many of them become due in a second; None: all at once.
        dry_run: return what would happen, and write nothing.
        limit: the most to replay.

    Raises:
        InvalidJob: the edit does not fit one of them, or they are of several groups. Nothing was replayed.
        LedgerUnavailable: those before are replayed and on record.
    """
    if per_second is not None and not per_second > 0:
        raise ValueError(f"per_second must be more than zero, not {per_second}")
    if edit and len(selection.ids or ()) != 1 and selection.group is None:
        raise InvalidJob("an edit is for one dead letter or one group; name its id, or the group")
    detail = dict(selection.filters)
    if edit:
        detail["edited"] = sorted(edit)
    if per_second is not None:
        detail["per_second"] = per_second
    decide = partial(
        replay_ids,
        database,
        actor=actor,
        act="edit" if edit else "replay",
        detail=detail,
        edit=edit,
        per_second=per_second,
        dry_run=dry_run,
        scope=selection.scope,
    )
    return for_selection(database, selection, limit, decide)


def replay_one(database: Database, dead_letter_id: str, *, actor: str, edit: Mapping[str, Any] | None = None) -> None:
    """`replay` of one dead letter.

    Raises:
        JobNotFound: it does not exist. InvalidState: it was replayed or discarded before, its job is not dead, or its
            message still cannot be read. InvalidJob: the edit does not fit. LedgerUnavailable.
    """
    [result] = replay(database, Selection(ids=(dead_letter_id,)), actor=actor, edit=edit)
    if result.problem is not None:
        raise result.problem


def replay_ids(
    database: Database,
    ids: Sequence[str],
    *,
    actor: str,
    act: str = "replay",
    subject_kind: str = "dead letter",
    detail: Mapping[str, Any] | None = None,
    edit: Mapping[str, Any] | None = None,
    per_second: float | None = None,
    dry_run: bool = False,
    discarded_too: bool = False,
    scope: Scope = EVERYTHING,
) -> list[ReplayResult]:
    """Replay these dead letters, in this order. One that cannot be replayed does not stop the others.

    Arguments:
        act, subject_kind, detail: for the audit log.
        edit: fields to set, as JSON values; each dead letter is checked before the first is replayed.
        per_second: how many become due in a second; None: all at once.
        dry_run: return what would happen, and write nothing.
        discarded_too: also those that were discarded.
        scope: the bounds of the jobs that come of it.

    Raises:
        InvalidJob: the edit does not fit one of them. Nothing was replayed. LedgerUnavailable: the batches before are
            replayed, and on record.
    """
    planner = Planner(
        database, heartbeats.known_kinds(database), edit, discarded_too, database_now(database), per_second, scope
    )
    if dry_run or edit:
        results = in_batches(ids, planner.dry_run)
        if dry_run:
            return results
        check_all_fit(results)
    entry = audit.Entry(
        database, actor=actor, act=act, subject_kind=subject_kind, detail=detail, single_subject=len(ids) == 1
    )
    return in_batches(ids, partial(planner.apply, entry))
