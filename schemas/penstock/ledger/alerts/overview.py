"""Alerts as people see them: those that fire, those that are silenced, and how they went."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from penstock.config.sections.alerts import AlertSettings
from penstock.ledger.queries.scope import Scope, matches_any
from penstock.ledger.sql.clock import from_now
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import alert_firings, alert_silences, alerts

_ORDER = {"firing": 0, "pending": 1, "ok": 2}


@dataclass(frozen=True, slots=True)
class Silence:
    """`subject`: empty for all of the alert."""

    alert: str
    subject: str
    until: datetime
    actor: str
    reason: str | None


@dataclass(frozen=True, slots=True)
class AlertStatus:
    """An alert, for one subject.

    Attributes:
        when: its condition; None: the settings here have no such alert.
        subject: queue, kind, schedule or outbox that it fires for; empty: it has none, or is `ok`.
        state: `firing`; `pending`: its condition holds, not long enough yet; `ok`.
        since: the condition holds since then.
        began_at: it fires since then.
        notified_at: None: no one was notified.
        silence: None: it is not silenced.
    """

    alert: str
    when: str | None
    subject: str
    state: str
    since: datetime | None
    began_at: datetime | None
    value: float | None
    detail: str | None
    notified_at: datetime | None
    silence: Silence | None

    def fields(self) -> dict[str, Any]:
        """The attributes as plain values, for JSON."""
        names = ("alert", "when", "state", "since", "began_at", "notified_at", "value", "detail")
        return {
            **{name: getattr(self, name) for name in names},
            "about": self.subject or None,
            "silenced_until": None if self.silence is None else self.silence.until,
            "silenced_by": None if self.silence is None else self.silence.actor,
            "silence_reason": None if self.silence is None else self.silence.reason,
            "silence_about": None if self.silence is None else self.silence.subject or None,
        }


@dataclass(frozen=True, slots=True)
class Firing:
    """A firing, from its onset to its end. `jobs`: ids of the jobs that notified of both."""

    id: str
    alert: str
    subject: str
    when: str
    began_at: datetime
    ended_at: datetime | None
    value: float | None
    detail: str
    notified_at: datetime | None
    jobs: list[str]

    def fields(self) -> dict[str, Any]:
        """The attributes as plain values, for JSON."""
        names = ("id", "alert", "when", "began_at", "ended_at", "notified_at", "value", "detail", "jobs")
        return {**{name: getattr(self, name) for name in names}, "about": self.subject or None}


def read_alerts(database: Database, settings: Mapping[str, AlertSettings]) -> list[AlertStatus]:
    """Every alert, those that fire first; one that holds for several subjects has a line for each.

    Arguments:
        settings: the alerts of penstock.toml. Those that only the ledger knows follow from its rows.

    Raises:
        LedgerUnavailable.
    """

    def read_all(connection: sa.Connection) -> list[AlertStatus]:
        silences = {(silence.alert, silence.subject): silence for silence in _silences(connection)}
        select = sa.select(alerts, alert_firings.c.began_at, alert_firings.c.notified_at)
        select = select.outerjoin(alert_firings, alert_firings.c.id == alerts.c.firing)
        rows = connection.execute(select.where(alerts.c.since.is_not(None))).all()
        listed = [_status(row, settings, silences) for row in rows]
        holding = {row.alert for row in rows}
        listed += [_quiet(name, settings[name], silences) for name in settings if name not in holding]
        return sorted(listed, key=lambda status: (_ORDER[status.state], status.alert, status.subject))

    return database.read(read_all)


def read_silences(database: Database) -> list[Silence]:
    """The silences in force, those that end first first. Raises LedgerUnavailable."""
    return database.read(_silences)


def read_firings(database: Database, *, before: str | None = None, limit: int = 50) -> list[Firing]:
    """Firings, the latest first, as far as they are kept: 90 days after their end. Raises LedgerUnavailable.

    Arguments:
        before: id of a firing; only earlier ones.
    """
    select = sa.select(alert_firings).order_by(alert_firings.c.id.desc()).limit(limit)
    if before is not None:
        select = select.where(alert_firings.c.id < before)
    rows = database.read(lambda connection: connection.execute(select).all())
    return [_firing(row) for row in rows]


def is_visible(scope: Scope, when: str | None, about: str | None) -> bool:
    """Whether a person with these bounds may see an alert: one on a queue or kind that is within them."""
    if not scope.is_bounded:
        return True
    if when in ("oldest_waiting", "depth", "silent_queue"):
        return about is not None and scope.queues is not None and scope.includes_queue(about)
    if when in ("dead_letters", "error_rate"):
        return (
            about is not None and scope.kinds is not None and scope.tenants is None and matches_any(about, scope.kinds)
        )
    return False


def _silences(connection: sa.Connection) -> list[Silence]:
    columns = [alert_silences.c[name] for name in ("alert", "subject", "until", "actor", "reason")]
    select = sa.select(*columns).where(alert_silences.c.until > from_now()).order_by(alert_silences.c.until)
    return [Silence(**row._asdict()) for row in connection.execute(select)]


def _status(
    row: Any, settings: Mapping[str, AlertSettings], silences: Mapping[tuple[str, str], Silence]
) -> AlertStatus:
    configured = settings.get(row.alert)
    return AlertStatus(
        alert=row.alert,
        when=None if configured is None else configured.when,
        subject=row.subject,
        state="pending" if row.firing is None else "firing",
        since=row.since,
        began_at=row.began_at,
        value=row.value,
        detail=row.detail,
        notified_at=row.notified_at,
        silence=silences.get((row.alert, row.subject)) or silences.get((row.alert, "")),
    )


def _quiet(name: str, settings: AlertSettings, silences: Mapping[tuple[str, str], Silence]) -> AlertStatus:
    silence = silences.get((name, ""))
    return AlertStatus(name, settings.when, "", "ok", None, None, None, None, None, silence)


def _firing(row: Any) -> Firing:
    values = row._asdict()
    when = values.pop("condition")
    return Firing(**values | {"when": when, "jobs": json.loads(row.jobs)})
