"""Explanations, and all that the ledger knows about one job."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from penstock.ledger.members import roster
from penstock.ledger.members.controls import Controls
from penstock.ledger.members.roster import Member, Roster
from penstock.ledger.queries.scope import EVERYTHING, UNREAD, Scope
from penstock.ledger.rows.jobs import UNSEEN
from penstock.ledger.rows.waits import held_jobs, limit_waits
from penstock.ledger.sql.clock import from_now
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import attempts, dead_letters, jobs, outbox, unique_keys, workflows
from penstock.schemas.jobs.kind import DISPATCHER_QUEUE, Kind, registry
from penstock.schemas.states import WAITING, State
from penstock.schemas.wire.codec import HEADER

COUNTED = 10_000
"""Due jobs that are counted; of more it is only reported that there are more."""
NAMED = 20
"""Workers and jobs that are named in the facts."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a job isn't running.

    Attributes:
        state: in the ledger; None: it has no record of the job.
        because: one short sentence about the job.
        facts: the data behind that sentence, by name: texts, numbers, aware times, and lists and objects of these.
        advice: what to do; None: nothing, the job goes on by itself or has ended well.
    """

    job_id: str
    state: State | None
    because: str
    facts: dict[str, Any]
    advice: str | None = None


@dataclass(frozen=True, slots=True)
class Case:
    """All that the ledger knows about a job.

    Attributes:
        now: on the database's clock.
        scope: the bounds of the caller: nothing outside of them is named.
        job: its row, without its payload.
        dead_letter: its dead letter.
        outbox: its row there, with how many are before it (`earlier`), and before it of its key (`of_its_key`).
        last: its last attempt that did not succeed.
        holder: the worker that has it.
        key: the row of the unique key that it took.
        earlier: number of jobs that are due before it, up to `COUNTED` + 1.
        limit: the slot of a limit that it waits for, and how many jobs wait before it, up to `COUNTED` + 1.
        workflow: the state and error of a workflow that has not ended, whose own job it is.
        held: the row of a job that is held back for workers that know it.
        controls: those in force.
        dispatcher, consumer: the dispatcher, and the worker of its queue, that was seen last; None where one is alive.
    """

    id: str
    lease: timedelta
    now: datetime
    roster: Roster
    scope: Scope
    job: Any = None
    dead_letter: Any = None
    outbox: Any = None
    last: Any = None
    holder: Member | None = None
    key: Any = None
    earlier: int = 0
    limit: tuple[str, int] | None = None
    workflow: Any = None
    held: Any = None
    dispatcher: Member | None = None
    consumer: Member | None = None
    controls: Controls = field(default_factory=Controls)

    @classmethod
    def read(cls, database: Database, job_id: str, lease: timedelta, scope: Scope = EVERYTHING) -> Case:
        return database.read(lambda connection: cls._read(connection, job_id, lease, scope))

    @classmethod
    def _read(cls, connection: sa.Connection, job_id: str, lease: timedelta, scope: Scope) -> Case:
        now = connection.execute(sa.select(from_now().label("now"))).scalar_one()
        living = Roster.read(connection, lease)
        job = connection.execute(sa.select(*_JOB).where(jobs.c.id == job_id)).first()
        more: dict[str, Any] = {"controls": Controls.read(connection)}
        if not living.dispatchers:
            more["dispatcher"] = roster.last_dispatcher(connection)
        if job is None or job.state == State.DEAD:
            more["dead_letter"] = connection.execute(
                sa.select(*_DEAD_LETTER).where(dead_letters.c.id == job_id)
            ).first()
        if job is None:
            more["outbox"] = _outboxed(connection, job_id)
            return cls(job_id, lease, now, living, scope, **more)
        ran = sa.select(*_ATTEMPT).where(attempts.c.job_id == job_id).order_by(attempts.c.fence.desc())
        more["last"] = connection.execute(ran.limit(1)).first()
        if job.worker:
            more["holder"] = roster.find(connection, job.worker)
        if not living.consuming(job.queue):
            more["consumer"] = roster.last_consumer(connection, job.queue)
        if job.state in WAITING and job.due_at is not None and job.due_at < now:
            more["earlier"] = _earlier(connection, job)
        if job.state == State.SCHEDULED:
            more["workflow"] = connection.execute(_UNDER_WAY.where(workflows.c.id == job_id)).first()
            more["limit"] = limit_waits.waiting(connection, job_id, COUNTED + 1)
        if job.state in WAITING and (held := held_jobs.find(connection, job)) is not None:
            more["held"] = held if held.due_at == job.due_at else None
        if job.key is not None:
            took = sa.select(unique_keys).where(unique_keys.c.key == job.key, unique_keys.c.job_id == job_id)
            more["key"] = connection.execute(took).first()
        return cls(job_id, lease, now, living, scope, job, **more)

    @property
    def kind(self) -> Kind | None:
        """None: its module was not imported."""
        return None if self.job is None else registry.find(self.job.kind)

    @property
    def due_at(self) -> datetime:
        """When a waiting job is due."""
        due: datetime = self.job.due_at or self.now
        return due

    @property
    def is_within_scope(self) -> bool | None:
        """Whether the job is for the caller; None: the ledger has no record of it."""
        if self.job is not None:
            return self.scope.includes(self.job.kind, self.job.queue, self.job.tenant)
        if self.dead_letter is not None:
            return self.scope.includes_dead_letter(self.dead_letter)
        if self.outbox is not None:
            ours = json.loads(self.outbox.headers)[HEADER]
            queue = self.outbox.queue if self.outbox.queue != DISPATCHER_QUEUE else ours.get("queue")
            return self.scope.includes(self.outbox.kind, queue, ours.get("tenant"))
        return None

    def queues_of(self, workers: Iterable[Member]) -> dict[str, list[str]]:
        """Worker → the queues that it consumes and the caller may know; of the first `NAMED`."""
        named = list(workers)[:NAMED]
        return {worker.name: [queue for queue in worker.queues if self.scope.includes_queue(queue)] for worker in named}

    def able(self, workers: Iterable[Member]) -> list[Member]:
        """Workers among these that have a handler for the job's kind."""
        names = {self.job.kind} if self.kind is None else {self.job.kind, self.kind.name}
        return [worker for worker in workers if names & worker.kinds]

    def live_queues(self) -> list[str]:
        """The queues that live workers consume and the caller may know."""
        return sorted(queue for queue in self.roster.queues() if self.scope.includes_queue(queue))

    def is_same(self, other: Case) -> bool:
        """Whether the job has not moved on from one reading to the other."""
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
    earlier = sa.select(jobs.c.id).where(jobs.c.state == job.state, jobs.c.due_at < job.due_at).limit(COUNTED + 1)
    return int(connection.execute(sa.select(sa.func.count()).select_from(earlier.subquery())).scalar_one())


def _outboxed(connection: sa.Connection, job_id: str) -> Any:
    before = outbox.alias()
    count = sa.select(sa.func.count()).where(before.c.position < outbox.c.position)
    earlier = count.scalar_subquery().label("earlier")
    of_its_key = count.where(before.c.key == outbox.c.key).scalar_subquery().label("of_its_key")
    columns = [outbox.c[name] for name in ("kind", "queue", "priority", "key", "headers", "created_at", "taken_until")]
    select = sa.select(*columns, earlier, of_its_key).where(outbox.c.id == job_id)
    return connection.execute(select.order_by(outbox.c.position).limit(1)).first()


_JOB_COLUMNS = (
    *(
        "id",
        "kind",
        "queue",
        "priority",
        "delivery",
        "state",
        "key",
        "tenant",
        "attempt",
        "failures",
        "crashes",
        "fence",
    ),
    *("worker", "cancel_requested", "enqueued_at", "due_at", "expires_at", "started_at", "finished_at", "error"),
    *("progress_done", "progress_total", "progress_note"),
)
_JOB = [*(jobs.c[name] for name in _JOB_COLUMNS), (jobs.c.payload == UNSEEN).label("unseen")]
_DEAD_LETTER_COLUMNS = ("kind", "queue", "reason", "detail", "fingerprint", "created_at", "replayed_at", "discarded_at")
_DEAD_LETTER = [*(dead_letters.c[name] for name in _DEAD_LETTER_COLUMNS), sa.null().label("tenant"), UNREAD]
_UNDER_WAY = sa.select(workflows.c.state, workflows.c.error).where(workflows.c.finished_at.is_(None))
_ATTEMPT = [attempts.c[name] for name in ("number", "worker", "started_at", "finished_at", "outcome", "error")]
