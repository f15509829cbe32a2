"""Workers and dispatchers as people see them: their state, and the jobs that they run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from penstock.ledger.members.leases import judged_at
from penstock.ledger.members.roster import Member, find, read_all
from penstock.ledger.sql.clock import from_now
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import jobs
from penstock.schemas.states import State

MOST_RUNNING = 20_000
"""Running jobs that are read, over all workers."""
RECENT = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class RunningJob:
    """Attempt that a worker runs now. `seconds` since it started."""

    id: str
    kind: str
    queue: str
    tenant: str | None
    attempt: int
    started_at: datetime | None
    seconds: float | None


@dataclass(frozen=True, slots=True)
class MemberStatus:
    """A worker or a dispatcher, as of now.

    Attributes:
        state: `running`, `draining`, `stopped` (in order), or `dead`: it ended without a word, or is silent.
        last_beat: its last sign of life.
        running: its jobs, those that run longest first; none of a dead one, whose jobs others take over.
        abandoned: number of jobs that are on record as its own though it is dead.
    """

    member: Member
    state: str
    last_beat: datetime
    running: list[RunningJob]
    abandoned: int

    def fields(self) -> dict[str, Any]:
        """The attributes as plain values, for JSON."""
        member = self.member
        names = ("host", "pid", "version", "concurrency", "peak_memory_bytes", "started_at")
        ends = ("draining_at", "ordered", "stopped_at", "ended")
        return {
            "name": member.name,
            "engine": member.engine,
            "state": self.state,
            **{name: getattr(member, name) for name in names},
            "last_beat": self.last_beat,
            "pool": None if member.pool_pids is None else {"kind": "processes", "pids": list(member.pool_pids)},
            "queues": list(member.queues),
            "running": [asdict(job) for job in self.running],
            "abandoned": self.abandoned,
            **{name: getattr(member, name) for name in ends},
        }


def read_members(database: Database, lease: timedelta, *, since: timedelta = RECENT) -> list[MemberStatus]:
    """All that are alive, and those that ended within this time, in the order of their names. Raises LedgerUnavailable.

    Arguments:
        lease: as in the settings; a sign of life renews it.
    """

    def read_status(connection: sa.Connection) -> list[MemberStatus]:
        now: datetime = connection.execute(sa.select(from_now())).scalar_one()
        at, running = judged_at(connection, lease), _running(connection, now)
        members = read_all(connection, since=at - since)
        return [_status(member, running.get(member.name, []), at, lease) for member in members]

    return database.read(read_status)


def read_member(database: Database, name: str, lease: timedelta) -> MemberStatus | None:
    """The worker or dispatcher of this name; None: none is on record. Raises LedgerUnavailable."""

    def read_status(connection: sa.Connection) -> MemberStatus | None:
        now: datetime = connection.execute(sa.select(from_now())).scalar_one()
        member = find(connection, name)
        at, running = judged_at(connection, lease), _running(connection, now)
        return None if member is None else _status(member, running.get(name, []), at, lease)

    return database.read(read_status)


def _running(connection: sa.Connection, now: datetime) -> dict[str | None, list[RunningJob]]:
    """Name of a worker → the jobs that are on record as running there."""
    columns = [jobs.c[name] for name in ("id", "kind", "queue", "tenant", "attempt", "started_at", "worker")]
    by_worker: dict[str | None, list[RunningJob]] = {}
    for row in connection.execute(sa.select(*columns).where(jobs.c.state == State.RUNNING).limit(MOST_RUNNING)):
        seconds = None if row.started_at is None else max((now - row.started_at).total_seconds(), 0.0)
        job = RunningJob(row.id, row.kind, row.queue, row.tenant, row.attempt, row.started_at, seconds)
        by_worker.setdefault(row.worker, []).append(job)
    for listed in by_worker.values():
        listed.sort(key=lambda job: (-(job.seconds or 0.0), job.id))
    return by_worker


def _status(member: Member, running: list[RunningJob], at: datetime, lease: timedelta) -> MemberStatus:
    if member.lives(at):
        state = "running" if member.draining_at is None else "draining"
        return MemberStatus(member, state, member.lease_until - lease, running, 0)
    if member.stopped_at is not None:
        return MemberStatus(member, "stopped", member.stopped_at, [], len(running))
    return MemberStatus(member, "dead", member.lease_until - lease, [], len(running))
