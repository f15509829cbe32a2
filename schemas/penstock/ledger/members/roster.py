"""Workers and dispatchers that are alive, with their queues and kinds, by their rows in the ledger."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from penstock.ledger.members.heartbeats import DISPATCHER
from penstock.ledger.sql.clock import from_now
from penstock.ledger.sql.tables import workers


@dataclass(frozen=True, slots=True)
class Member:
    """A worker or a dispatcher.

    Attributes:
        queues: that it consumes.
        kinds: that it has handlers for.
        lease_until: renewed while it lives, on the database's clock.
        ended: how it died, such as SIGKILL, if that was seen.
    """

    name: str
    engine: str
    host: str
    pid: int
    queues: tuple[str, ...]
    kinds: frozenset[str]
    lease_until: datetime
    stopped_at: datetime | None
    ended: str | None

    def lives(self, now: datetime) -> bool:
        return self.stopped_at is None and self.lease_until > now


@dataclass(frozen=True, slots=True)
class Roster:
    """All workers and dispatchers that are alive."""

    workers: tuple[Member, ...]
    dispatchers: tuple[Member, ...]

    @classmethod
    def read(cls, connection: sa.Connection) -> Roster:
        alive = workers.c.lease_until > from_now(), workers.c.stopped_at.is_(None)
        rows = connection.execute(sa.select(*_COLUMNS).where(*alive).order_by(workers.c.name)).all()
        members = [_member(row) for row in rows]
        return cls(
            tuple(member for member in members if member.engine != DISPATCHER),
            tuple(member for member in members if member.engine == DISPATCHER),
        )

    def consuming(self, queue: str) -> list[Member]:
        return [member for member in self.workers if queue in member.queues]

    def consumers(self) -> dict[str, int]:
        """Number of consumers of each queue, dispatchers included."""
        return dict(Counter(queue for member in (*self.workers, *self.dispatchers) for queue in member.queues))

    def queues(self) -> set[str]:
        return {queue for member in self.workers for queue in member.queues}


def find(connection: sa.Connection, name: str) -> Member | None:
    """The member of this name, dead or alive."""
    row = connection.execute(sa.select(*_COLUMNS).where(workers.c.name == name)).first()
    return None if row is None else _member(row)


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


_NAMES = ("name", "engine", "host", "pid", "queues", "kinds", "lease_until", "stopped_at", "ended")
_COLUMNS = [workers.c[name] for name in _NAMES]


def _member(row: Any) -> Member:
    values = row._asdict()
    return Member(**values | {"queues": tuple(json.loads(row.queues)), "kinds": frozenset(json.loads(row.kinds))})
