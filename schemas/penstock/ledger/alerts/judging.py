"""Onsets and ends of alerts. Each happens once, in the transaction that enqueues its notifications, whatever number of
dispatchers judges: the row of alert and subject is locked, and a judgement older than the row's is dropped."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import sqlalchemy as sa

from penstock.ledger.alerts.conditions import Holding, Judgement
from penstock.ledger.alerts.notifications import Notice, notifications
from penstock.ledger.sql.clock import from_now
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import alert_firings, alert_silences, alerts
from penstock.ledger.transitions.enqueue import enter
from penstock.schemas.wire.ids import new_id

KEPT = timedelta(days=90)
"""How long a firing is kept after its end."""
_FORGOTTEN = timedelta(days=1)
"""After that time without a judgement a row is deleted, as of an alert that is no longer in penstock.toml."""
_LONGEST_SUBJECT = 255


class Change(NamedTuple):
    """An onset, or an end, that this call has recorded."""

    notice: Notice
    silenced: bool
    jobs: int


def record(database: Database, installation: str, judgements: Sequence[Judgement]) -> list[Change]:
    """Record judgements. Returns the onsets and ends, whose notifications are due now.

    Arguments:
        installation: see `notifications`.

    Raises:
        LedgerUnavailable: nothing was written, and nothing is notified.
    """
    judged = {judgement.name: judgement for judgement in judgements}
    quiet = sa.select(alerts.c.alert).where(alerts.c.alert.in_(list(judged)), alerts.c.since.is_not(None)).limit(1)
    if not any(judgement.holding for judgement in judgements) and not database.read(
        lambda connection: connection.execute(quiet).all()
    ):
        return []

    def record_all(connection: sa.Connection) -> list[Change]:
        recorder = _Recorder(connection, database, installation, judged)
        for judgement in judgements:
            recorder.record(judgement)
        return recorder.changes

    return database.write(record_all)


class _Recorder:
    """A transaction that records judgements."""

    def __init__(
        self, connection: sa.Connection, database: Database, installation: str, judged: Collection[str]
    ) -> None:
        self._connection, self._database, self._installation = connection, database, installation
        self.changes: list[Change] = []
        select = sa.select(alerts).where(alerts.c.alert.in_(list(judged))).order_by(alerts.c.alert, alerts.c.subject)
        self._rows = {(row.alert, row.subject): row for row in connection.execute(database.locked(select))}
        firing = [row.firing for row in self._rows.values() if row.firing is not None]
        select_firings = sa.select(alert_firings).where(database.among(alert_firings.c.id, firing))
        self._firings = {row.id: row for row in connection.execute(select_firings)} if firing else {}
        silences = sa.select(alert_silences.c.alert, alert_silences.c.subject)
        self._silences = set(map(tuple, connection.execute(silences.where(alert_silences.c.until > from_now()))))

    def record(self, judgement: Judgement) -> None:
        holding = {subject[:_LONGEST_SUBJECT]: held for subject, held in judgement.holding.items()}
        former = {subject for alert, subject in self._rows if alert == judgement.name}
        for subject in sorted((former | holding.keys()) - judgement.unknown):
            row = self._rows.get((judgement.name, subject))
            if row is not None and row.judged_at > judgement.at:
                continue
            if (held := holding.get(subject)) is not None:
                self._hold(judgement, subject, row, held)
            elif row is not None and row.since is not None:
                if row.firing is not None:
                    self._end(judgement, row)
                self._write(row, judgement.at, None, None, row.value, row.detail)

    def _hold(self, judgement: Judgement, subject: str, row: Any, held: Holding) -> None:
        since: datetime = row.since if row is not None and row.since is not None else judgement.at
        firing: str | None = None if row is None else row.firing
        if firing is not None:
            if (former := self._firings[firing]).notified_at is None:  # its silence may be over
                notice = Notice(firing, judgement.name, subject, held.value, held.detail, former.began_at, None)
                self._notify(judgement, notice)
        elif judgement.at - since >= judgement.settings.hold:
            firing = new_id()
            notice = Notice(firing, judgement.name, subject, held.value, held.detail, judgement.at, None)
            self._begin(judgement, notice)
        if row is None:
            # A plain INSERT: if another dispatcher was faster, this transaction runs again and finds its row.
            names = {"alert": judgement.name, "subject": subject, "judged_at": judgement.at, "since": since}
            values = {**names, "firing": firing, "value": held.value, "detail": held.detail}
            self._connection.execute(sa.insert(alerts).values(values))
        else:
            self._write(row, judgement.at, since, firing, held.value, held.detail)

    def _write(
        self, row: Any, at: datetime, since: datetime | None, firing: str | None, value: float | None, detail: str
    ) -> None:
        update = sa.update(alerts).where(alerts.c.alert == row.alert, alerts.c.subject == row.subject)
        self._connection.execute(update.values(judged_at=at, since=since, firing=firing, value=value, detail=detail))

    def _begin(self, judgement: Judgement, notice: Notice) -> None:
        values = {
            "id": notice.firing,
            "alert": notice.alert,
            "subject": notice.subject,
            "condition": judgement.settings.when,
            "began_at": notice.began_at,
            "value": notice.value,
            "detail": notice.detail,
            "jobs": "[]",
        }
        self._connection.execute(sa.insert(alert_firings).values(values))
        silenced = self._is_silenced(notice)
        self.changes.append(Change(notice, silenced, self._notify(judgement, notice)))

    def _end(self, judgement: Judgement, row: Any) -> None:
        firing = self._firings[row.firing]
        notice = Notice(firing.id, row.alert, row.subject, row.value, row.detail, firing.began_at, judgement.at)
        update = sa.update(alert_firings).where(alert_firings.c.id == firing.id)
        self._connection.execute(update.values(ended_at=judgement.at))
        # A receiver that was notified of the onset is notified of the end, also during a silence.
        jobs = self._enqueue(judgement, notice, firing.jobs) if firing.notified_at is not None else 0
        self.changes.append(Change(notice, firing.notified_at is None, jobs))

    def _notify(self, judgement: Judgement, notice: Notice) -> int:
        """Notify of an onset, unless that is silenced. Returns the number of jobs."""
        if not judgement.settings.notify or self._is_silenced(notice):
            return 0
        jobs = self._enqueue(judgement, notice, "[]")
        update = sa.update(alert_firings).where(alert_firings.c.id == notice.firing)
        self._connection.execute(update.values(notified_at=judgement.at))
        return jobs

    def _enqueue(self, judgement: Judgement, notice: Notice, former: str) -> int:
        envelopes = notifications(self._installation, judgement.settings, notice)
        enter(self._connection, self._database, envelopes, judgement.at)
        jobs = [*json.loads(former), *(envelope.id for envelope in envelopes)]
        update = sa.update(alert_firings).where(alert_firings.c.id == notice.firing)
        self._connection.execute(update.values(jobs=json.dumps(jobs)))
        return len(envelopes)

    def _is_silenced(self, notice: Notice) -> bool:
        return not {(notice.alert, ""), (notice.alert, notice.subject)}.isdisjoint(self._silences)


def notification_jobs(database: Database, names: Collection[str]) -> list[str]:
    """Ids of the jobs that notify of these alerts, as far as these fire now, or ended within the hour."""
    lately = sa.or_(alert_firings.c.ended_at.is_(None), alert_firings.c.ended_at > from_now(-timedelta(hours=1)))
    select = sa.select(alert_firings.c.jobs).where(alert_firings.c.alert.in_(list(names)), lately)
    lists = database.read(lambda connection: list(connection.scalars(select)))
    return [job_id for jobs in lists for job_id in json.loads(jobs)]


def forget(database: Database) -> None:
    """Delete rows of alerts that are judged no more, ending their firings; old firings; and silences that are over."""

    def delete_old(connection: sa.Connection) -> None:
        old = alerts.c.judged_at < from_now(-_FORGOTTEN)
        firing = list(connection.scalars(sa.select(alerts.c.firing).where(old, alerts.c.firing.is_not(None))))
        if firing:
            update = sa.update(alert_firings).where(database.among(alert_firings.c.id, firing))
            connection.execute(update.values(ended_at=from_now()))
        connection.execute(sa.delete(alerts).where(old))
        connection.execute(sa.delete(alert_firings).where(alert_firings.c.ended_at < from_now(-KEPT)))
        connection.execute(sa.delete(alert_silences).where(alert_silences.c.until < from_now()))

    database.write(delete_old)
