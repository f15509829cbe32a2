"""Silences: an alert that is silenced begins and ends on record, and no one is notified of its onset."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime

import sqlalchemy as sa

from penstock.config.errors import AlertNotFound, InvalidState
from penstock.config.suggestions import did_you_mean
from penstock.ledger.rows import audit
from penstock.ledger.sql.clock import from_now
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import alert_firings, alert_silences
from penstock.ledger.sql.text import storable


def silence(
    database: Database,
    alert: str,
    *,
    until: datetime,
    actor: str,
    configured: Collection[str],
    subject: str = "",
    reason: str | None = None,
) -> None:
    """Silence an alert, or one subject of it, until a time. A second silence takes the place of the first.

    One that fires at that time is notified then, if it was not before.

    Arguments:
        until: aware.
        configured: the alerts of the settings.
        subject: a queue, kind, schedule or outbox; empty: all of them.

    Raises:
        AlertNotFound: neither the settings nor the ledger has an alert of this name.
        InvalidState: that time is over.
        LedgerUnavailable.
    """
    if until <= datetime.now(UTC):
        raise InvalidState(f"{until:%Y-%m-%d %H:%M:%SZ} is over; a silence ends in the future")

    def write_silence(connection: sa.Connection) -> None:
        _check(connection, alert, configured)
        row = {
            "alert": alert,
            "subject": storable(subject, 255),
            "until": until,
            "actor": storable(actor, 255),
            "reason": None if reason is None else storable(reason, 255),
            "silenced_at": datetime.now(UTC),
        }
        connection.execute(database.upsert(alert_silences).values(row))
        detail = {"about": subject or None, "until": until, "reason": reason}
        audit.write(connection, actor=actor, act="silence", subject_kind="alert", subject=alert, detail=detail)

    database.write(write_silence)


def unsilence(database: Database, alert: str, *, actor: str, subject: str = "") -> None:
    """End a silence now.

    Raises:
        InvalidState: the alert is not silenced so; LedgerUnavailable.
    """

    def delete_silence(connection: sa.Connection) -> None:
        where = alert_silences.c.alert == alert, alert_silences.c.subject == storable(subject, 255)
        current = sa.delete(alert_silences).where(*where, alert_silences.c.until > from_now())
        if connection.execute(current).rowcount == 0:
            about = f" for {subject!r}" if subject else ""
            raise InvalidState(f"alert {alert!r} is not silenced{about}; see: penstock alerts list")
        detail = {"about": subject or None}
        audit.write(connection, actor=actor, act="unsilence", subject_kind="alert", subject=alert, detail=detail)

    database.write(delete_silence)


def _check(connection: sa.Connection, alert: str, configured: Collection[str]) -> None:
    if alert in configured:
        return
    recorded = sa.select(alert_firings.c.id).where(alert_firings.c.alert == alert).limit(1)
    if connection.execute(recorded).first() is None:
        names = ", ".join(sorted(configured)) or "none"
        raise AlertNotFound(f"no alert {alert!r} in penstock.toml; there is: {names}{did_you_mean(alert, configured)}")
