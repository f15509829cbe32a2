"""Judges the alerts of penstock.toml, and enqueues their notifications."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Mapping

from penstock.config.sections.alerts import AlertSettings
from penstock.config.settings import Settings
from penstock.ledger.alerts import judging
from penstock.ledger.alerts.conditions import Conditions
from penstock.ledger.sql.database import Database
from penstock.producers.senders import Sender, open_backlogs, open_sender_from
from penstock.workers.dispatcher.due_jobs import send_due
from penstock.workers.dispatcher.poller import Poller, log

JUDGE_SECONDS = 15.0
_FORGET_SECONDS = 3600.0
NO_DISPATCHER = "no_dispatcher"


class Alerts(Poller):
    """Judges alerts every 15 s. Any number of dispatchers does so at a time: each onset and end happens once.

    Arguments:
        alerts: by their names.
        wakeup: set when there are notifications to be sent.
    """

    name = "alerts"
    interval_seconds = JUDGE_SECONDS
    essential = False

    def __init__(
        self, settings: Settings, database: Database, alerts: Mapping[str, AlertSettings], wakeup: threading.Event
    ) -> None:
        super().__init__()
        self.settings, self._database, self._alerts, self._wakeup_due = settings, database, dict(alerts), wakeup
        self.conditions = Conditions(settings, database, lambda: open_backlogs(settings))
        self._forget_at = time.monotonic() + random.uniform(0.0, _FORGET_SECONDS)

    @classmethod
    def open(cls, settings: Settings, database: Database, wakeup: threading.Event) -> list[Alerts]:
        """The service where there are alerts; else an empty list."""
        return [cls(settings, database, settings.alerts, wakeup)] if settings.alerts else []

    def run_once(self) -> bool:
        changes = judging.record(self._database, self.settings.prefix, self.conditions.judge(self._alerts))
        for change in changes:
            notice, fields = change.notice, {"alert": change.notice.alert, "subject": change.notice.subject}
            how = "silenced" if change.silenced else f"{change.jobs} notifications"
            if notice.ended_at is None:
                log.warning("alert %s began: %s (%s)", notice.alert, notice.detail, how, extra=fields)
            else:
                log.warning("alert %s ended: %s (%s)", notice.alert, notice.detail, how, extra=fields)
        if any(change.jobs for change in changes):
            self._wakeup_due.set()
        if time.monotonic() >= self._forget_at:
            judging.forget(self._database)
            self._forget_at = time.monotonic() + _FORGET_SECONDS
        return False

    def close(self) -> None:
        self.conditions.close()


class NoDispatcherAlerts(Alerts):
    """Judges in a worker whether a dispatcher is alive, which no dispatcher can, and sends those notifications itself.

    The retries of a notification are sent here, too, as long as no dispatcher is there for them.
    """

    name = "alerts of dispatchers"

    def __init__(self, settings: Settings, database: Database, alerts: Mapping[str, AlertSettings]) -> None:
        super().__init__(settings, database, alerts, threading.Event())
        self._sender: Sender | None = None
        # Workers that start together do not judge together.
        self.interval_seconds = JUDGE_SECONDS * random.uniform(0.8, 1.2)

    @classmethod
    def open_for_worker(cls, settings: Settings, database: Database) -> list[NoDispatcherAlerts]:
        """The service where there is an alert on it; else an empty list."""
        alerts = {name: alert for name, alert in settings.alerts.items() if alert.when == NO_DISPATCHER}
        return [cls(settings, database, alerts)] if alerts else []

    def run_once(self) -> bool:
        super().run_once()
        if jobs := judging.notification_jobs(self._database, list(self._alerts)):
            if self._sender is None:
                self._sender = open_sender_from(self.settings)
            self.sent += send_due(self._database, self._sender, only=jobs)
        return False

    def close(self) -> None:
        super().close()
        if self._sender is not None:
            self._sender.close()
