"""`/alerts`: what fires, what is silenced, and how it went."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import Field

from penstock.ledger.alerts.overview import is_visible, read_alerts, read_firings
from penstock.ledger.alerts.silences import silence, unsilence
from penstock.workers.engines.celery.flower.page import Act, Page, Parameters

_PAGE = 50


class Alerts(Page):
    path, name, tab, title = r"/alerts", "alerts", "alerts", "Alerts"
    template = "house/alerts.html"

    class Query(Parameters):
        cursor: str | None = Field(default=None, max_length=128)

    def read(self, query: Any, *path_arguments: str) -> dict[str, Any]:
        alerts = [status.fields() for status in read_alerts(self.ledger, self.settings_of_penstock.alerts)]
        firings = [firing.fields() for firing in read_firings(self.ledger, before=query.cursor, limit=_PAGE + 1)]
        more = len(firings) > _PAGE
        return {
            "alerts": self._visible(alerts),
            "history": self._visible(firings[:_PAGE]),
            "next_cursor": firings[_PAGE - 1]["id"] if more else None,
        }

    def _visible(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [row for row in rows if is_visible(self.person.scope, row["when"], row["about"])]


class Silence(Act):
    path = r"/alerts/([^/]+)/silence"

    class Body(Parameters):
        about: str = Field(default="", max_length=255)
        minutes: int = Field(ge=1, le=525_600)
        reason: str | None = Field(default=None, max_length=255)

    def do(self, body: Any, *path_arguments: str) -> dict[str, Any]:
        self.need_whole_scope()
        [name] = path_arguments
        until = datetime.now(UTC) + timedelta(minutes=body.minutes)
        configured = self.settings_of_penstock.alerts
        actor, about = self.person.name, body.about
        silence(self.ledger, name, until=until, actor=actor, configured=configured, subject=about, reason=body.reason)
        return {"message": f"Alert {name} is silenced until {until:%Y-%m-%d %H:%M} UTC"}


class Unsilence(Act):
    path = r"/alerts/([^/]+)/unsilence"

    class Body(Parameters):
        about: str = Field(default="", max_length=255)

    def do(self, body: Any, *path_arguments: str) -> dict[str, Any]:
        self.need_whole_scope()
        [name] = path_arguments
        unsilence(self.ledger, name, actor=self.person.name, subject=body.about)
        return {"message": f"Alert {name} is not silenced any more"}


HANDLERS = (Alerts, Silence, Unsilence)
