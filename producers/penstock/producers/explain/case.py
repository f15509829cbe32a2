"""What an explanation is, and all that the ledger knows about one job."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from penstock.ledger.members import roster
from penstock.ledger.members.roster import Member, Roster
from penstock.ledger.queries.status import UNSEEN
from penstock.ledger.rows import limit_waits
from penstock.ledger.sql.clock import from_now
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import attempts, dead_letters, jobs, outbox, unique_keys
from penstock.schemas.jobs.kind import Kind, registry
from penstock.schemas.states import WAITING, State

COUNTED = 10_000
"""Due jobs counted before the rest is only said to be more."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a job isn't running.

    Attributes:
        state: as the ledger has it; None: it has no record of the job.
        because: one short sentence about the job.
        facts: what that is made of, by name: texts, numbers, aware times, and lists and objects of these.
        advice: what to do; None: nothing, it goes on by itself or has ended well.
    """

    job_id: str
    state: State | None
    because: str
    facts: dict[str, Any]
    advice: str | None = None


@dataclass(frozen=True, slots=True)
class Case:
    """What the ledger knows about a job.

    Attributes:
        now: on the database's clock.
        job: its row, without what it carries.
        letter: its dead letter.
        outbox: its row there, with how many are before it (`earlier`), and before it of its key (`of_its_key`).
        last: its last attempt that did not succeed.
        holder: the worker that has it.
        key: the row of the unique key that it took.
        earlier: jobs that are due before it, up to a limit.
        limit: the slot of a limit that it waits for, and how many wait before it, up to a limit.
        dispatcher, consumer: the last dispatcher, and the last worker of its queue, seen where none lives.
    """

    id: str
    lease: timedelta
    now: datetime
    roster: Roster
    job: Any = None
    letter: Any = None
    outbox: Any = None
    last: Any = None
    holder: Member | None = None
    key: Any = None
    earlier: int = 0
    limit: tuple[str, int] | None = None
    dispatcher: Member | None = None
    consumer: Member | None = None

    @classmethod
    def read(cls, database: Database, job_id: str, lease: timedelta) -> Case:
        return database.read(lambda connection: cls._read(connection, job_id, lease))

    @classmethod
    def _read(cls, connection: sa.Connection, job_id: str, lease: timedelta) -> Case:
        now = connection.execute(sa.select(from_now().label("now"))).scalar_one()
        living = Roster.read(connection)
        job = connection.execute(sa.select(*_JOB).where(jobs.c.id == job_id)).first()
        more: dict[str, Any] = {}
        if not living.dispatchers:
            more["dispatcher"] = roster.last_dispatcher(connection)
        if job is None or job.state == State.DEAD:
            more["letter"] = connection.execute(sa.select(*_LETTER).where(dead_letters.c.id == job_id)).first()
        if job is None:
            more["outbox"] = _outboxed(connection, job_id)
            return cls(job_id, lease, now, living, **more)
        ran = sa.select(*_ATTEMPT).where(attempts.c.job_id == job_id).order_by(attempts.c.fence.desc())
        more["last"] = connection.execute(ran.limit(1)).first()
        if job.worker:
            more["holder"] = roster.find(connection, job.worker)
        if not living.consuming(job.queue):
            more["consumer"] = roster.last_consumer(connection, job.queue)
        if job.state in WAITING and job.due_at is not None and job.due_at < now:
            more["earlier"] = _earlier(connection, job)
        if job.state == State.SCHEDULED:
            more["limit"] = limit_waits.waiting(connection, job_id, COUNTED + 1)
        if job.key is not None:
            took = sa.select(unique_keys).where(unique_keys.c.key == job.key, unique_keys.c.job_id == job_id)
            more["key"] = connection.execute(took).first()
        return cls(job_id, lease, now, living, job, **more)

    @property
    def kind(self) -> Kind | None:
        """None: its module was not imported."""
        return None if self.job is None else registry.find(self.job.kind)

    @property
    def due_at(self) -> datetime:
        """Of a waiting one."""
        due: datetime = self.job.due_at or self.now
        return due

    def stands_as(self, other: Case) -> bool:
        """Whether the job is where it was."""
        if self.job is None or other.job is None:
            return self.job is other.job
        return bool((self.job.state, self.job.fence) == (other.job.state, other.job.fence))

    def about(self) -> dict[str, Any]:
        """Facts about any job on record."""
        names = ("kind", "queue", "priority", "key", "tenant", "attempt", "failures", "crashes", "enqueued_at")
        facts: dict[str, Any] = {name: getattr(self.job, name) for name in (*names, "expires_at")}
        if not State(self.job.state).final:
            facts["max_attempts"] = None if self.kind is None else self.kind.retry.max_attempts
            facts["holds_key_until"] = None if self.key is None else self.key.held_until or "it ends"
        return facts


def _earlier(connection: sa.Connection, job: Any) -> int:
    found = sa.select(jobs.c.id).where(jobs.c.state == job.state, jobs.c.due_at < job.due_at).limit(COUNTED + 1)
    return int(connection.execute(sa.select(sa.func.count()).select_from(found.subquery())).scalar_one())


def _outboxed(connection: sa.Connection, job_id: str) -> Any:
    before = outbox.alias()
    count = sa.select(sa.func.count()).where(before.c.position < outbox.c.position)
    earlier = count.scalar_subquery().label("earlier")
    of_its_key = count.where(before.c.key == outbox.c.key).scalar_subquery().label("of_its_key")
    columns = [outbox.c[name] for name in ("kind", "queue", "priority", "key", "created_at", "taken_until")]
    select = sa.select(*columns, earlier, of_its_key).where(outbox.c.id == job_id)
    return connection.execute(select.order_by(outbox.c.position).limit(1)).first()


_JOB_COLUMNS = (
    *("kind", "queue", "priority", "delivery", "state", "key", "tenant", "attempt", "failures", "crashes", "fence"),
    *("worker", "cancel_requested", "enqueued_at", "due_at", "expires_at", "started_at", "finished_at", "error"),
    *("progress_done", "progress_total", "progress_note"),
)
_JOB = [*(jobs.c[name] for name in _JOB_COLUMNS), (jobs.c.payload == UNSEEN).label("unseen")]
_LETTER = [
    dead_letters.c[name]
    for name in ("kind", "queue", "reason", "detail", "fingerprint", "created_at", "replayed_at", "discarded_at")
]
_ATTEMPT = [attempts.c[name] for name in ("number", "worker", "started_at", "finished_at", "outcome", "error")]
