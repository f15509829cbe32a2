"""`/overview`: what happens, what waits, and what needs a person now."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import timedelta
from typing import Any, Literal

from penstock.ledger.queries import rates
from penstock.workers.engines.celery.flower.page import Page, Parameters
from penstock.workers.engines.celery.flower.wording import href
from penstock.workers.telemetry.operation import Waiting, review_operation

SINCE = {"1h": timedelta(hours=1), "24h": timedelta(hours=24), "7d": timedelta(days=7)}
MOST_ROWS = 20
KEPT_SECONDS = {"1h": 4.0, "24h": 15.0, "7d": 60.0}
"""Figures are read anew after so long: their last point takes ten seconds to come anyway."""
_WAITING_SECONDS = 4.0
_PAGES = {
    "dispatchers": "workers",
    "paused": "queues",
    "queues": "queues",
    "kinds": "kinds",
    "due jobs": "workers",
    "firing": "schedules",
    "outbox": "outboxes",
    "retention": "settings",
    "dead letters": "deadletters",
    "workflows": "workflows",
}
"""Check → the page that says more, if there is one."""
_UNNAMED = {"dispatchers", "due jobs", "retention"}
"""Checks whose words name no kind or queue, for people who may not see all of these."""


class Since(Parameters):
    since: Literal["1h", "24h", "7d"] = "1h"
    kind: str | None = None
    queue: str | None = None


class Overview(Page):
    path, name, tab, title = r"/overview", "overview", "overview", "Overview"
    template = "house/overview.html"
    Query = Since

    def read(self, query: Since, *path_arguments: str) -> dict[str, Any]:
        report, waiting, scope = read_report(self, query), self._waiting(), self.person.scope
        letters = {
            pair: count
            for pair, count in waiting.dead_letters.items()
            if not scope.is_bounded or scope.includes(pair[1], pair[0], None)
        }
        queues = {queue: jobs for queue, (jobs, _) in (waiting.queues or {}).items() if scope.includes_queue(queue)}
        oldest = waiting.oldest(scope)
        return {
            **report.plain(),
            "points": json.dumps([{**asdict(point), "at": point.at.timestamp()} for point in report.series]),
            "oldest": None if oldest is None else {"queue": oldest[0], "seconds": oldest[1]},
            "waiting": None if waiting.queues is None else sum(queues.values()),
            "dead_letters": sum(letters.values()),
            "workers": len(waiting.roster.workers),
            "dispatchers": len(waiting.roster.dispatchers),
            "outboxes": [] if scope.is_bounded else [asdict(outbox) for outbox in waiting.outboxes],
            "needs": self._needs(),
        }

    def _waiting(self) -> Waiting:
        services = self.services
        return services.kept("waiting", _WAITING_SECONDS, lambda: Waiting.read(services.settings, services.ledger))

    def _needs(self) -> list[dict[str, Any]]:
        """The doctor's findings that a person must see to, the worst first."""
        services = self.services
        matching = services.kept(
            "operation", _WAITING_SECONDS, lambda: list(review_operation(services.settings, services.ledger))
        )
        troubles = [
            finding
            for finding in matching
            if finding.level != "OK" and (not self.person.scope.is_bounded or finding.check in _UNNAMED)
        ]
        return [
            {**asdict(finding), "page": _PAGES.get(finding.check)}
            for finding in sorted(troubles, key=lambda finding: finding.level)  # FAIL before WARN
        ]


class Home(Overview):
    """`/` leads to the overview."""

    path, name = r"/", "home"

    async def get(self, *path_arguments: str) -> None:
        self.redirect(href(self, "api/penstock/overview" if self.is_json else "overview"))


def read_report(page: Page, query: Since) -> rates.Report:
    """The figures of a time for the person who asks."""
    scope = page.person.scope

    def make_report() -> rates.Report:
        return rates.report(
            page.ledger,
            SINCE[query.since],
            kinds=[query.kind] if query.kind else None,
            queues=[query.queue] if query.queue else None,
            scope=scope,
        )

    if query.kind or query.queue or scope.is_bounded:
        return make_report()
    return page.services.kept(("rates", query.since), KEPT_SECONDS[query.since], make_report)


HANDLERS = (Overview, Home)
