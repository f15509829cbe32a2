"""Record of `ctx.once` for each effect outside the database: begun before it is called, done once it is confirmed.

A row that is begun and not done, and whose attempt is no longer at it, is in doubt: its worker died, or the effect
failed without a word on whether it happened.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from penstock.config.errors import InvalidState
from penstock.ledger.rows import audit
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import effects, jobs
from penstock.ledger.transitions.outcome import FenceLost
from penstock.schemas.states import State

_NAMESPACE = uuid.UUID("6f0e3a52-6f5b-4c57-9a2e-0d3c9d3e8f11")


@dataclass(frozen=True, slots=True)
class EarlierEffect:
    """An effect that was started before.

    Attributes:
        result: confirmed value, as JSON; None if it had none.
    """

    begun_at: datetime
    done: bool
    result: str | None


def effect_id(job_id: str, key: str) -> str:
    """The id of an effect: a UUID, which every provider takes as an idempotency key, and always the same one."""
    return str(uuid.uuid5(_NAMESPACE, f"{job_id}\0{key}"))


def begin(
    database: Database, job_id: str, fence: int, key: str, *, again: bool = False, at: datetime | None = None
) -> EarlierEffect | None:
    """Enter that an effect is about to be called. Something else than None: it was begun before, and is not to be.

    Arguments:
        fence: of the claim under which the job runs.
        again: also one that is in doubt: its provider has said that it did not happen.
        at: the time of the call, by which it is known again: where the connection was lost at the commit and this is
            asked once more, what is found may be what it began itself.

    Raises:
        FenceLost: the claim was lost. LedgerUnavailable. Nothing was written then.
    """
    where, now = effect_id(job_id, key), at or datetime.now(UTC)

    def write(connection: sa.Connection) -> EarlierEffect | None:
        # The lock on the job's row lets no other worker claim the job before this is written.
        select = database.locked(sa.select(jobs.c.state, jobs.c.fence).where(jobs.c.id == job_id))
        row = connection.execute(select).first()
        if row is None or row.state != State.RUNNING or row.fence != fence:
            raise FenceLost(f"another worker has claimed job {job_id}")
        begun = {"fence": fence, "begun_at": now}
        rows = connection.execute(sa.select(effects).where(effects.c.id == where)).first()
        if rows is None:
            connection.execute(sa.insert(effects).values(id=where, job_id=job_id, key=key, **begun))
        elif rows.done_at is None and (again or (rows.fence == fence and rows.begun_at == now)):
            connection.execute(sa.update(effects).where(effects.c.id == where).values(**begun))
        else:
            return EarlierEffect(rows.begun_at, rows.done_at is not None, rows.result)
        return None

    return database.write(write)


def confirm(database: Database, job_id: str, fence: int, key: str, result: str | None) -> None:
    """Enter that an effect happened, whoever has the job by now. What was confirmed first stays.

    Raises:
        LedgerUnavailable: nothing was written.
    """
    where, now = effect_id(job_id, key), datetime.now(UTC)
    done = {"done_at": now, "result": result}
    update = sa.update(effects).where(effects.c.id == where, effects.c.done_at.is_(None)).values(**done)
    # Who took the job over may have withdrawn its own call of it; ours happened all the same.
    row = {"id": where, "job_id": job_id, "key": key, "fence": fence, "begun_at": now, **done}

    def write(connection: sa.Connection) -> None:
        if connection.execute(update).rowcount == 0:
            connection.execute(database.insert_ignore(effects), [row])

    database.write(write)


def withdraw(database: Database, job_id: str, fence: int, key: str) -> None:
    """Enter that an effect begun under this fence did not happen; one that was begun anew since then stays."""
    statement = sa.delete(effects).where(
        effects.c.id == effect_id(job_id, key), effects.c.fence == fence, effects.c.done_at.is_(None)
    )
    database.write(lambda connection: connection.execute(statement))


def effects_of(database: Database, job_id: str) -> Sequence[Any]:
    """The rows of a job's effects, the first begun first."""
    select = sa.select(effects).where(effects.c.job_id == job_id).order_by(effects.c.begun_at, effects.c.key)
    return database.read(lambda connection: connection.execute(select).all())


def decide(database: Database, job_id: str, key: str, *, happened: bool, result: str | None = None, actor: str) -> None:
    """Say of an effect in doubt whether it happened. A replay of its job then goes on, or calls it anew.

    Arguments:
        result: as JSON, for the handler.
        actor: who says so, for the audit log.

    Raises:
        InvalidState: there is no such effect, it is confirmed already, or its job is running. LedgerUnavailable.
    """

    def write(connection: sa.Connection) -> None:
        running = sa.select(jobs.c.state).where(jobs.c.id == job_id)
        state = connection.execute(database.locked(running)).scalar()
        rows = connection.execute(sa.select(effects).where(effects.c.id == effect_id(job_id, key))).first()
        if rows is None:
            raise InvalidState(f"job {job_id} has begun no effect {key!r}")
        if rows.done_at is not None:
            raise InvalidState(f"effect {key!r} of job {job_id} is confirmed since {rows.done_at.isoformat()}")
        if state == State.RUNNING:
            raise InvalidState(f"job {job_id} is running; decide about effect {key!r} when it has ended")
        where = effects.c.id == rows.id
        if happened:
            values = {"done_at": datetime.now(UTC), "result": result}
            connection.execute(sa.update(effects).where(where).values(**values))
        else:
            connection.execute(sa.delete(effects).where(where))
        act = "confirm effect" if happened else "forget effect"
        audit.write(connection, actor=actor, act=act, subject=job_id, detail={"key": key})

    database.write(write)
