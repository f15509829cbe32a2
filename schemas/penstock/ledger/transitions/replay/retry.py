"""Retrying one ended job."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from penstock.config.errors import InvalidState
from penstock.ledger.queries.scope import EVERYTHING, Scope
from penstock.ledger.rows import audit
from penstock.ledger.rows.attempts import keep_success
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import dead_letters, jobs
from penstock.ledger.transitions.replay.replay import replay_ids
from penstock.ledger.transitions.replay.revive import revive
from penstock.schemas.states import State


def retry(database: Database, job_id: str, *, actor: str, force: bool = False, scope: Scope = EVERYTHING) -> None:
    """Try an ended job again, now; its dead letter counts as replayed.

    Arguments:
        actor: for the audit log.
        force: also one that succeeded.
        scope: the bounds of the job, where its message is read again.

    Raises:
        JobNotFound: it is not recorded. InvalidState: it has not ended, or succeeded and `force` is not given, or its
            message was never read and still cannot be; says what to do.
    """
    unread = sa.and_(dead_letters.c.id == job_id, dead_letters.c.replayed_at.is_(None), dead_letters.c.raw.is_not(None))
    if database.read(lambda connection: connection.execute(sa.select(dead_letters.c.id).where(unread)).first()):
        # Its message was never read, so it must be read first.
        [result] = replay_ids(
            database, [job_id], actor=actor, act="retry", subject_kind="job", discarded_too=True, scope=scope
        )
        if result.problem is not None:
            raise result.problem
        return
    states = [State.DEAD, State.DISCARDED, State.CANCELLED, *([State.SUCCEEDED] if force else [])]

    def revive_and_audit(connection: sa.Connection) -> None:
        state = connection.execute(sa.select(jobs.c.state).where(jobs.c.id == job_id)).scalar()
        if state == State.SUCCEEDED and not force:
            raise InvalidState(f"job {job_id} succeeded; run it once more only on purpose, with --force")
        was = _revive(connection, database, job_id, states)
        audit.write(connection, actor=actor, act="retry", subject=job_id, detail={"was": was})

    database.write(revive_and_audit)


def _revive(connection: sa.Connection, database: Database, job_id: str, states: Sequence[State]) -> State:
    """`revive`, also of a job that succeeded, whose attempt is then kept."""
    if State.SUCCEEDED in states:
        keep_success(connection, job_id)  # does nothing in another state
    return revive(connection, database, job_id, states)
