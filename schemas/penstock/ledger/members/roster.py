"""Workers and dispatchers that are alive, with their queues and kinds, by their rows in the ledger."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from penstock.ledger.members.heartbeats import DISPATCHER
from penstock.ledger.members.leases import judged_at
from penstock.ledger.sql.tables import workers


@dataclass(frozen=True, slots=True)
class Member:
    """A worker or a dispatcher.

    Attributes:
        queues: that it consumes, until it drains; those that are paused too.
        left_queues: that it was told to stop consuming.
        kinds: that it has handlers for.
        lease_until: renewed while it lives, on the database's clock.
        ended: how it died, such as SIGKILL, if that was seen.
        version: of Penstock; None: it is older than this record.
        concurrency: attempts that it runs at a time; None: it runs none, as a dispatcher, or is older.
        pool_pids: the processes of its pool; None: it has none.
        draining_at: since when it takes no more jobs.
        ordered: `drain` or `stop`, by a person.
    """

    name: str
    engine: str
    host: str
    pid: int
    queues: tuple[str, ...]
    kinds: frozenset[str]
    started_at: datetime
    lease_until: datetime
    peak_memory_bytes: int | None
    stopped_at: datetime | None
    ended: str | None
    version: str | None
    concurrency: int | None
    draining_at: datetime | None
    ordered: str | None
    left_queues: tuple[str, ...] = ()
    pool_pids: tuple[int, ...] | None = None

    @property
    def consumed(self) -> tuple[str, ...]:
        """The queues that it takes jobs from now, if it lives."""
        return self.queues if self.draining_at is None else ()

    def lives(self, at: datetime) -> bool:
        """Whether it is alive, as of `leases.judged_at`."""
        return self.stopped_at is None and self.lease_until > at


@dataclass(frozen=True, slots=True)
class Roster:
    """All workers and dispatchers that are alive."""

    workers: tuple[Member, ...]
    dispatchers: tuple[Member, ...]

    @classmethod
    def read(cls, connection: sa.Connection, lease: timedelta) -> Roster:
        """Read who is alive, as of `leases.judged_at`."""
        alive = workers.c.lease_until > judged_at(connection, lease), workers.c.stopped_at.is_(None)
        rows = connection.execute(sa.select(*_COLUMNS).where(*alive).order_by(workers.c.name)).all()
        members = [_member(row) for row in rows]
        return cls(
            tuple(member for member in members if member.engine != DISPATCHER),
            tuple(member for member in members if member.engine == DISPATCHER),
        )

    def __contains__(self, member: Member) -> bool:
        return any(member.name == alive.name for alive in (*self.workers, *self.dispatchers))

    def consuming(self, queue: str) -> list[Member]:
        return [member for member in self.workers if queue in member.consumed]

    def told_to_leave(self, queue: str) -> list[Member]:
        """Workers that consumed a queue until remote control told them to stop."""
        return [member for member in self.workers if queue in member.left_queues]

    def consumers(self) -> dict[str, int]:
        """Number of consumers of each queue, dispatchers included."""
        return dict(Counter(queue for member in (*self.workers, *self.dispatchers) for queue in member.consumed))

    def queues(self) -> set[str]:
        """The queues that a live worker consumes."""
        return {queue for member in self.workers for queue in member.consumed}


def find(connection: sa.Connection, name: str) -> Member | None:
    """The member of this name, dead or alive."""
    row = connection.execute(sa.select(*_COLUMNS).where(workers.c.name == name)).first()
    return None if row is None else _member(row)


def read_all(connection: sa.Connection, *, since: datetime, limit: int = 1000) -> list[Member]:
    """Workers and dispatchers that were alive at this time or later: in the order of their names.

    Arguments:
        limit: the most that are read, the latest signs of life first.
    """
    seen = sa.select(*_COLUMNS).where(workers.c.lease_until > since)
    rows = connection.execute(seen.order_by(workers.c.lease_until.desc()).limit(limit))
    return sorted(map(_member, rows), key=lambda member: member.name)


def last_dispatcher(connection: sa.Connection) -> Member | None:
    """The dispatcher that was seen last."""
    return _last(connection, [workers.c.engine == DISPATCHER])


def last_consumer(connection: sa.Connection, queue: str) -> Member | None:
    """The consumer of a queue that was seen last."""
    named = workers.c.queues.contains(json.dumps(queue), autoescape=True)
    return _last(connection, [workers.c.engine != DISPATCHER, named])


def _last(connection: sa.Connection, where: Iterable[sa.ColumnElement[bool]]) -> Member | None:
    select = sa.select(*_COLUMNS).where(*where).order_by(workers.c.lease_until.desc()).limit(1)
    row = connection.execute(select).first()
    return None if row is None else _member(row)


_COLUMNS = [workers.c[field.name] for field in fields(Member)]


def _member(row: Any) -> Member:
    queues, left = (tuple(json.loads(names or "[]")) for names in (row.queues, row.left_queues))
    pids = None if row.pool_pids is None else tuple(json.loads(row.pool_pids))
    kinds = frozenset(json.loads(row.kinds))
    return Member(**row._asdict() | {"queues": queues, "left_queues": left, "kinds": kinds, "pool_pids": pids})
