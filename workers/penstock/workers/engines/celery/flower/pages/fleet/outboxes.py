"""`/outboxes`: the jobs that web backends have committed and no dispatcher has sent."""

from __future__ import annotations

from typing import Any

from penstock.ledger.alerts.conditions import LEDGERS_OUTBOX
from penstock.ledger.queries import stats
from penstock.ledger.queries.stats import outbox_name
from penstock.workers.engines.celery.flower.page import Page

MOST = 10_001
"""Jobs of an outbox that are counted."""


class Outboxes(Page):
    path, name, tab, title = r"/outboxes", "outboxes", "outboxes", "Outboxes"
    template, needs_whole_scope = "fleet/outboxes.html", True

    def read(self, query: Any, *path_arguments: str) -> dict[str, Any]:
        read = stats.outboxes(self.ledger, self.settings_of_penstock.outbox_urls, most=MOST)
        return {
            "outboxes": [
                {
                    "outbox": LEDGERS_OUTBOX if number == 0 else outbox_name(outbox.outbox),
                    "url": outbox.outbox,
                    "jobs": outbox.jobs,
                    "more": outbox.jobs == MOST,
                    "lag_seconds": outbox.lag_seconds,
                    "trouble": outbox.trouble,
                }
                for number, outbox in enumerate(read)
            ]
        }


HANDLERS = (Outboxes,)
