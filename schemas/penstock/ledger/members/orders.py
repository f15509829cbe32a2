"""Orders of people's to workers and dispatchers, by the row of each in the ledger: no broker carries them, so they work
with `remote_control = "off"`, on both engines. A worker reads its order with its next heartbeat, or look."""

from __future__ import annotations

from datetime import timedelta
from typing import Literal

import sqlalchemy as sa

from penstock.config.errors import InvalidState, WorkerNotFound
from penstock.ledger.members.leases import judged_at
from penstock.ledger.members.notices import notify_members
from penstock.ledger.members.roster import Member, find
from penstock.ledger.rows import audit
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import workers

Order = Literal["drain", "stop"]


def give_order(
    database: Database, name: str, order: Order, *, actor: str, lease: timedelta, reason: str | None = None
) -> Member:
    """Order a worker or dispatcher to take no more jobs and to end its process. Returns it as it was.

    `drain`: the jobs that run there may take as long as they take. `stop`: those that still run after `grace_seconds`
    are released to other workers. A worker that drains can be ordered to stop. What started the process, such as
    systemd or Kubernetes, may start another one.

    Arguments:
        lease: the setting.

    Raises:
        WorkerNotFound: none has this name.
        InvalidState: it has ended, or has this order already.
        LedgerUnavailable.
    """

    def write_order(connection: sa.Connection) -> Member:
        connection.execute(database.locked(sa.select(workers.c.name).where(workers.c.name == name)))
        member = find(connection, name)
        if member is None:
            raise WorkerNotFound(f"no worker or dispatcher {name!r} is on record; see: penstock workers list")
        if not member.lives(judged_at(connection, lease)):
            raise InvalidState(f"{name} has ended already")
        if member.ordered in (order, "stop"):
            raise InvalidState(f"{name} was ordered to {member.ordered} already")
        connection.execute(sa.update(workers).where(workers.c.name == name).values(ordered=order))
        detail = {"engine": member.engine, "host": member.host, "pid": member.pid, "reason": reason}
        audit.write(connection, actor=actor, act=order, subject_kind="worker", subject=name, detail=detail)
        notify_members(connection)
        return member

    return database.write(write_order)
