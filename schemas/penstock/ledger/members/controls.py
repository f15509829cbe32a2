"""Controls: what operators change at run time for all workers, until it is changed back.

A *pause* of a queue, of a kind or of all; the *concurrency* and the *weight* of a queue; the number of a *limit*.
Workers follow within two seconds: they read those in force with each heartbeat while they have jobs, else twice a
second or, on PostgreSQL, when they are notified. A pause or limit that has ended, by a person or by its `until`, stays
in the table for a while: the dispatcher wakes the jobs that wait for the end of a pause, and forgets it then.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal

import sqlalchemy as sa

from penstock.config.errors import ConfigError
from penstock.ledger.members.notices import notify_members
from penstock.ledger.rows import audit
from penstock.ledger.rows.waits.limit_waits import PAUSED
from penstock.ledger.sql.clock import from_now
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import controls
from penstock.ledger.sql.text import LONGEST_ERROR, storable
from penstock.schemas.jobs.kind import DEAD_QUEUE, DISPATCHER_QUEUE

Scope = Literal["all", "queue", "kind"]
Setting = Literal["concurrency", "weight"]

MOST: dict[Setting, int] = {"concurrency": 10_000, "weight": 1000}
"""The largest value of each setting."""

PAUSE, LIMIT = "pause", "limit"
MOST_OF_LIMIT = 2**31 - 1
_LONGEST_NAME = 128


@dataclass(frozen=True, slots=True)
class Control:
    """A control on record.

    Attributes:
        scope, name: what it is about; the name of all is empty, and that of a limit's share is its slot.
        what: `pause`, `concurrency`, `weight` or `limit`.
        value: of a concurrency, a weight or a limit.
        until: when it ends by itself, on the database's clock; None: never.
    """

    scope: Scope | Literal["limit"]
    name: str
    what: str
    value: int | None
    actor: str
    reason: str | None
    since: datetime
    until: datetime | None

    @property
    def slot(self) -> str:
        """Slot that jobs wait for in the ledger, while this pause holds them back."""
        return f"{PAUSED}{self.scope}:{self.name}"

    @property
    def target(self) -> str:
        """`queue 'reports'`, `kind email.send`, `limit bank/concurrency` or `everything`."""
        return {"all": "everything", "queue": f"queue {self.name!r}"}.get(self.scope, f"{self.scope} {self.name}")


class _Everything:
    def __contains__(self, _name: object) -> bool:
        return True


EVERYTHING: Container[str] = _Everything()
"""All queues, also those that are not known yet."""


@dataclass(frozen=True, slots=True)
class Controls:
    """All controls in force at one time.

    Attributes:
        concurrency, weights: by queue.
        limits: by the name of a limit, or by the slot of a share.
    """

    all: tuple[Control, ...] = ()
    concurrency: Mapping[str, int] = field(default_factory=dict, compare=False)
    weights: Mapping[str, int] = field(default_factory=dict, compare=False)
    limits: Mapping[str, int] = field(default_factory=dict, compare=False)

    @classmethod
    def read(cls, connection: sa.Connection) -> Controls:
        """The controls in force, in one small statement."""
        rows = tuple(_control(row) for row in connection.execute(_IN_FORCE))
        values = ({row.name: row.value for row in rows if row.what == what and row.value} for what in (*MOST, LIMIT))
        return cls(rows, *values)

    @property
    def pauses(self) -> tuple[Control, ...]:
        return tuple(control for control in self.all if control.what == PAUSE)

    @property
    def paused_queues(self) -> Container[str]:
        """Queues from which nothing is fetched."""
        pauses = self.pauses
        if any(pause.scope == "all" for pause in pauses):
            return EVERYTHING
        return frozenset(pause.name for pause in pauses if pause.scope == "queue")

    def pause_of(self, queue: str | None, kinds: Container[str] = ()) -> Control | None:
        """The pause that holds a job back; None: nothing does.

        Arguments:
            queue: of the job; None: unknown.
            kinds: the names of its kind.
        """
        for pause in self.pauses:
            scope, name = pause.scope, pause.name
            if scope == "all" or (scope == "queue" and name == queue) or (scope == "kind" and name in kinds):
                return pause
        return None

    @property
    def ends(self) -> bool:
        """Whether one of them ends by itself, of which no one is notified."""
        return any(control.until is not None for control in self.all)

    def limit_of(self, slot: str) -> Control | None:
        """The change of a limit that applies to a slot: of its share, else of the whole limit; None: as declared."""
        changes = {control.name: control for control in self.all if control.what == LIMIT}
        return changes.get(slot) or changes.get(slot.rpartition(":")[0])


_EXPIRED = controls.c.until <= from_now()
_IN_FORCE = (
    sa.select(controls)
    .where(sa.or_(controls.c.until.is_(None), ~_EXPIRED))
    .order_by(controls.c.scope, controls.c.name, controls.c.what)
)


def in_force(database: Database) -> Controls:
    """Controls in force. Raises LedgerUnavailable."""
    return database.read(Controls.read)


def pause(
    database: Database,
    scope: Scope,
    name: str = "",
    *,
    actor: str,
    reason: str | None = None,
    until: datetime | timedelta | None = None,
) -> Control:
    """Pause a queue, a kind or all. A pause of the same that is in force gets this reason and end.

    Arguments:
        name: of the queue or kind; empty for all.
        until: when it ends by itself, or after how long; None: `resume` ends it.

    Raises:
        ConfigError: the queue cannot be paused, or `until` has passed. LedgerUnavailable.
    """
    _check(scope, name)
    return _start(database, _key(scope, name, PAUSE), None, _by(actor, reason), until)


def resume(database: Database, scope: Scope, name: str = "", *, actor: str) -> Control | None:
    """End a pause of a queue, a kind or all. Pauses of others stay. Returns what has ended; None: it was not paused.

    Raises:
        LedgerUnavailable.
    """
    return _end(database, _key(scope, name, PAUSE), actor, "resume", "paused")


def set_limit(
    database: Database,
    name: str,
    most: int,
    *,
    actor: str,
    reason: str | None = None,
    until: datetime | timedelta | None = None,
) -> Control:
    """Set how many jobs a limit admits, at a time or in its period, over what is declared.

    Arguments:
        name: of the limit, for each of its shares; or the slot of one share, which counts before that.
        until: when it ends by itself, or after how long; None: `reset_limit` ends it.

    Raises:
        ConfigError: the name is too long, the number is out of bounds, or `until` has passed. LedgerUnavailable.
    """
    if not 0 < len(name) <= _LONGEST_NAME:
        raise ConfigError(f"limit {name!r} cannot be changed: its name must have 1 to {_LONGEST_NAME} characters")
    if not 1 <= most <= MOST_OF_LIMIT:
        raise ConfigError(f"a limit must be from 1 to {MOST_OF_LIMIT:,}, not {most:,}; to stop a kind, pause it")
    return _start(database, _key(LIMIT, name, LIMIT), most, _by(actor, reason), until)


def reset_limit(database: Database, name: str, *, actor: str) -> Control | None:
    """Let a limit be as declared again. Returns what has ended; None: it was not changed. Raises LedgerUnavailable."""
    return _end(database, _key(LIMIT, name, LIMIT), actor, "reset", "set")


def tune(
    database: Database, queue: str, what: Setting, value: int | None, *, actor: str, reason: str | None = None
) -> None:
    """Set the concurrency of each worker of a queue, or the weight of the queue, over what the settings say.

    Arguments:
        value: None: as the settings say.

    Raises:
        ConfigError: the queue does not exist, or the value is out of bounds. LedgerUnavailable.
    """
    _check("queue", queue)
    if value is not None and not 1 <= value <= MOST[what]:
        raise ConfigError(f"{what} must be from 1 to {MOST[what]:,}, not {value:,}")

    def set_value(connection: sa.Connection) -> None:
        row: dict[str, Any] = {**_key("queue", queue, what), "value": value, **_by(actor, reason)}
        if value is None:
            connection.execute(sa.delete(controls).where(_is("queue", queue, what)))
        else:
            row |= {"since": _now(connection), "until": None}
            connection.execute(database.upsert(controls), [row])
        _audit(connection, row, what, {"value": value, "reason": row["reason"]})
        notify_members(connection)

    database.write(set_value)


def any_ended(ago: timedelta) -> sa.ColumnElement[bool]:
    """Whether `ended` returns any."""
    return sa.exists(sa.select(controls.c.name).where(controls.c.until <= from_now(-ago)))


def ended(database: Database, ago: timedelta) -> list[Control]:
    """Pauses and limits that ended so long ago or longer; jobs that a pause held back may not all be awake."""
    select = sa.select(controls).where(controls.c.until <= from_now(-ago))
    return database.read(lambda connection: [_control(row) for row in connection.execute(select)])


def forget(database: Database, control: Control, after: timedelta) -> None:
    """Forget a pause or limit that ended so long ago, unless it was renewed meanwhile."""
    over = _is(control.scope, control.name, control.what), controls.c.until <= from_now(-after)
    database.write(lambda connection: connection.execute(sa.delete(controls).where(*over)))


def _start(
    database: Database,
    key: Mapping[str, str],
    value: int | None,
    by: Mapping[str, str | None],
    until: datetime | timedelta | None,
) -> Control:
    """Insert a control that can end by itself. One of the same value that is in force keeps the time of its start."""
    what = key["what"]

    def insert_control(connection: sa.Connection) -> Control:
        now = _now(connection)
        end = now + until if isinstance(until, timedelta) else until
        if end is not None and end <= now:
            raise ConfigError(f"a {what} cannot end at {end.isoformat()}: that has passed")
        row: dict[str, Any] = {**key, "value": value, **by, "since": now, "until": end}
        before = connection.execute(database.locked(_of(**key))).first()
        if before is not None and before.value == value and (before.until is None or before.until > now):
            row["since"] = before.since
        connection.execute(database.upsert(controls), [row])
        _audit(connection, row, what, {"value": value, "reason": row["reason"], "until": end})
        notify_members(connection)
        return Control(**row)

    return database.write(insert_control)


def _end(database: Database, key: Mapping[str, str], actor: str, act: str, word: str) -> Control | None:
    """End a control now. Returns it; None: it is not in force."""

    def end_control(connection: sa.Connection) -> Control | None:
        now = _now(connection)
        row = connection.execute(database.locked(_of(**key))).first()
        if row is None or (row.until is not None and row.until <= now):
            return None
        connection.execute(sa.update(controls).where(_is(**key)).values(until=now))
        detail: dict[str, Any] = {f"{word}_by": row.actor, f"{word}_since": row.since, f"{word}_to": row.value}
        _audit(connection, {**key, "actor": actor}, act, detail)
        notify_members(connection)
        return _control(row)

    return database.write(end_control)


def _check(scope: Scope, name: str) -> None:
    if (scope == "all") != (name == "") or len(name) > _LONGEST_NAME:
        raise ConfigError(f"{name!r} is not the name of a {scope}")
    if scope == "queue" and name in (DISPATCHER_QUEUE, DEAD_QUEUE):
        raise ConfigError(f"queue {name!r} has no jobs of yours, and goes on")


def _now(connection: sa.Connection) -> datetime:
    now: datetime = connection.execute(sa.select(from_now())).scalar_one()
    return now


def _key(scope: str, name: str, what: str) -> dict[str, str]:
    return {"scope": scope, "name": name, "what": what}


def _by(actor: str, reason: str | None) -> dict[str, str | None]:
    return {"actor": storable(actor, 255), "reason": storable(reason, LONGEST_ERROR) if reason else None}


def _is(scope: str, name: str, what: str) -> sa.ColumnElement[bool]:
    return sa.and_(controls.c.scope == scope, controls.c.name == name, controls.c.what == what)


def _of(scope: str, name: str, what: str) -> sa.Select[Any]:
    return sa.select(controls).where(_is(scope, name, what))


def _audit(connection: sa.Connection, row: Mapping[str, Any], act: str, detail: Mapping[str, Any]) -> None:
    about = {key: value for key, value in detail.items() if value is not None}
    kind, name = (row["scope"], row["name"]) if row["scope"] != "all" else ("all", None)
    audit.write(connection, actor=row["actor"], act=act, subject=name, subject_kind=kind, detail=about)


def _control(row: Any) -> Control:
    return Control(**row._asdict())
