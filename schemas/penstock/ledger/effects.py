"""Record of `ctx.once` for each effect outside the database: started before it is called, done once it is confirmed.

An effect is in doubt if it was started, is not done, and its attempt no longer works on it: the worker died, or the
effect failed without saying whether it happened.
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
    """Record that an effect is about to be called. Returns an effect that was started before; then do not call it.

    Arguments:
        fence: of the claim under which the job runs.
        again: start an effect in doubt again: its provider has reported that it did not happen.
        at: the time of the call, which identifies it. If the connection is lost at the commit and this is called again,
            the row that is there may be its own.

    Raises:
        FenceLost: the claim was lost. LedgerUnavailable. Nothing was written then.
    """
    id, now = effect_id(job_id, key), at or datetime.now(UTC)

    def start_effect(connection: sa.Connection) -> EarlierEffect | None:
        # The lock on the job's row lets no other worker claim the job before this is written.
        select = database.locked(sa.select(jobs.c.state, jobs.c.fence).where(jobs.c.id == job_id))
        row = connection.execute(select).first()
        if row is None or row.state != State.RUNNING or row.fence != fence:
            raise FenceLost(f"another worker has claimed job {job_id}")
        begun = {"fence": fence, "begun_at": now}
        effect = connection.execute(sa.select(effects).where(effects.c.id == id)).first()
        if effect is None:
            connection.execute(sa.insert(effects).values(id=id, job_id=job_id, key=key, **begun))
        elif effect.done_at is None and (again or (effect.fence == fence and effect.begun_at == now)):
            connection.execute(sa.update(effects).where(effects.c.id == id).values(**begun))
        else:
            return EarlierEffect(effect.begun_at, effect.done_at is not None, effect.result)
        return None

    return database.write(start_effect)


def confirm(database: Database, job_id: str, fence: int, key: str, result: str | None) -> None:
    """Record that an effect happened, also if another worker has the job by now. The first confirmation stays.

    Raises:
        LedgerUnavailable: nothing was written.
    """
    id, now = effect_id(job_id, key), datetime.now(UTC)
    done = {"done_at": now, "result": result}
    update = sa.update(effects).where(effects.c.id == id, effects.c.done_at.is_(None)).values(**done)
    # The worker that took the job over may have withdrawn its own call; ours happened all the same.
    row = {"id": id, "job_id": job_id, "key": key, "fence": fence, "begun_at": now, **done}

    def confirm_or_insert(connection: sa.Connection) -> None:
        if connection.execute(update).rowcount == 0:
            connection.execute(database.insert_ignore(effects), [row])

    database.write(confirm_or_insert)


def withdraw(database: Database, job_id: str, fence: int, key: str) -> None:
    """Record that an effect started under this fence did not happen. If it was started again since, it stays."""
    statement = sa.delete(effects).where(
        effects.c.id == effect_id(job_id, key), effects.c.fence == fence, effects.c.done_at.is_(None)
    )
    database.write(lambda connection: connection.execute(statement))


def effects_of(database: Database, job_id: str) -> Sequence[Any]:
    """The rows of a job's effects, in the order in which they were started."""
    select = sa.select(effects).where(effects.c.job_id == job_id).order_by(effects.c.begun_at, effects.c.key)
    return database.read(lambda connection: connection.execute(select).all())


def decide(database: Database, job_id: str, key: str, *, happened: bool, result: str | None = None, actor: str) -> None:
    """Decide whether an effect in doubt happened. A replay of its job then goes on, or calls it again.

    Arguments:
        result: as JSON, for the handler.
        actor: who decides, for the audit log.

    Raises:
        InvalidState: the effect does not exist, it is confirmed already, or its job is running. LedgerUnavailable.
    """

    def confirm_or_forget(connection: sa.Connection) -> None:
        running = sa.select(jobs.c.state).where(jobs.c.id == job_id)
        state = connection.execute(database.locked(running)).scalar()
        effect = connection.execute(sa.select(effects).where(effects.c.id == effect_id(job_id, key))).first()
        if effect is None:
            raise InvalidState(f"job {job_id} has begun no effect {key!r}")
        if effect.done_at is not None:
            raise InvalidState(f"effect {key!r} of job {job_id} is confirmed since {effect.done_at.isoformat()}")
        if state == State.RUNNING:
            raise InvalidState(f"job {job_id} is running; decide about effect {key!r} when it has ended")
        where = effects.c.id == effect.id
        if happened:
            values = {"done_at": datetime.now(UTC), "result": result}
            connection.execute(sa.update(effects).where(where).values(**values))
        else:
            connection.execute(sa.delete(effects).where(where))
        act = "confirm effect" if happened else "forget effect"
        audit.write(connection, actor=actor, act=act, subject=job_id, detail={"key": key})

    database.write(confirm_or_forget)
