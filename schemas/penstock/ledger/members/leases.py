"""Leases after an outage of the ledger, which ends the leases of all: those who lived when it began get new ones."""

from __future__ import annotations

import time
from datetime import datetime, timedelta

import sqlalchemy as sa

from penstock.ledger.sql.clock import from_now
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import workers

_LONGEST_PAUSE = 1 / 2
"""Part of a lease. Each member renews its own every third of it, so if no one did for longer, no one could."""

_MOMENT_SECONDS = 2.0
"""Within this a live member writes again after an outage: it tries twice a second while it cannot."""
_ALL_DEAD = timedelta(hours=1)
"""After such a pause all have died, most likely, and a reader does not wait for them."""


def excuse_outage(connection: sa.Connection, database: Database, lease: timedelta) -> None:
    """Give a whole lease to all members who lived when the last of all leases was renewed, if that was too long ago.

    A process that renews a lease after a pause, or judges that of another, asks this first, in the same transaction.
    So it does not matter which one does, nor whether it saw the outage, was frozen or has just started.

    Arguments:
        lease: of each member. Zero: leases end by the clock alone.
    """
    if lease <= timedelta():
        return
    _, heard = _heard_before_outage(connection, lease)
    if heard is None:
        return
    # One that its supervisor saw end needs no time to renew its lease.
    excused = sa.select(workers.c.name).where(_LIVE, workers.c.ended.is_(None), workers.c.lease_until > heard)
    names = connection.scalars(database.locked(excused.order_by(workers.c.name))).all()
    connection.execute(
        sa.update(workers).where(database.among(workers.c.name, names)).values(lease_until=from_now(lease))
    )


def judged_at(connection: sa.Connection, lease: timedelta) -> datetime:
    """The time, on the database's clock, as of which those who only read judge leases.

    A member whose lease ends later is alive. It is now, unless no one has renewed a lease for so long that no one
    could. Then it is the time of the last renewal, for two seconds from the first look of this process: if the ledger
    was unavailable, a member has written again by then, and all others have new leases. If none has, they are dead.
    It never waits.

    Arguments:
        lease: of each member. Zero: leases end by the clock alone.
    """
    return _judge(connection, lease)[1]


def await_renewal(database: Database, lease: timedelta) -> None:
    """Wait until leases are judged by the clock: two seconds at most, right after an outage of the ledger.

    For readers that look once, such as a command. Members that renew leases of another length than the reader's make
    it wait for as long, too.

    Raises:
        LedgerUnavailable: the outage lasts.
    """

    def is_by_the_clock(connection: sa.Connection) -> bool:
        now, at = _judge(connection, lease)
        return now == at

    by_the_clock = database.read(is_by_the_clock)
    deadline = time.monotonic() + _MOMENT_SECONDS  # from the first look at the latest
    while not by_the_clock and time.monotonic() < deadline:
        time.sleep(_MOMENT_SECONDS / 20)
        by_the_clock = database.read(is_by_the_clock)


_first_looks: dict[sa.URL, tuple[datetime, float]] = {}
"""Ledger → the last renewal of a lease before a silence of all members, and when this process first saw that."""


def _judge(connection: sa.Connection, lease: timedelta) -> tuple[datetime, datetime]:
    """The time now, and `judged_at`."""
    now, heard = _heard_before_outage(connection, lease)
    if heard is None or lease <= timedelta() or now - heard > _ALL_DEAD:
        return now, now
    ledger, look = connection.engine.url, time.monotonic()
    if ledger not in _first_looks or _first_looks[ledger][0] != heard:
        _first_looks[ledger] = heard, look
    return now, heard if look - _first_looks[ledger][1] < _MOMENT_SECONDS else now


_LIVE = workers.c.stopped_at.is_(None)


def _heard_before_outage(connection: sa.Connection, lease: timedelta) -> tuple[datetime, datetime | None]:
    """The time now; and when the last of all leases was renewed, if that is so long ago that no one could since. None:
    someone has."""
    latest = sa.select(from_now().label("now"), sa.func.max(workers.c.lease_until).label("until")).where(_LIVE)
    row = connection.execute(latest).one()
    if row.until is None or row.now - (heard := row.until - lease) <= lease * _LONGEST_PAUSE:
        return row.now, None
    return row.now, heard
