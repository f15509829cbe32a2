"""`/kinds`: every kind that is known, how it does, and whether it is paused."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import Any

from penstock.ledger.members import heartbeats
from penstock.schemas.jobs.kind import registry
from penstock.workers.engines.celery.flower.page import Page
from penstock.workers.engines.celery.flower.pages.house.overview import Since, read_report
from penstock.workers.fleet.queues import Fleet, as_values


class Kinds(Page):
    path, name, tab, title = r"/kinds", "kinds", "kinds", "Kinds"
    template = "fleet/kinds.html"
    Query = Since

    def read(self, query: Since, *path_arguments: str) -> dict[str, Any]:
        report = read_report(self, query)
        pairs = heartbeats.known_kinds(self.ledger)
        pairs |= {kind.name: kind.queue for kind in registry}
        listed = dict.fromkeys(report.pairs) | dict.fromkeys(pairs.items())
        fleet = Fleet.read(self.ledger, self.settings_of_penstock.lease)
        paused = {pause.name for pause in fleet.controls.pauses if pause.scope == "kind"}
        listed |= {(kind, ""): None for kind in paused - {kind for kind, _ in listed}}
        handled = Counter(kind for worker in fleet.roster.workers for kind in worker.kinds)
        rows = [
            {
                "kind": kind,
                "queue": queue,
                "workers": handled[kind],
                "pause": as_values(fleet.controls.pause_of(queue, {kind})),
                **({} if (figures := report.pairs.get((kind, queue))) is None else asdict(figures)),
            }
            for kind, queue in sorted(listed)
            if query.kind in (None, kind) and query.queue in (None, queue)
            if not self.person.scope.is_bounded or self.person.scope.includes(kind, queue, None)
        ]
        return {"since": report.since, "until": report.until, "kinds": rows, "slowest": report.slowest()}


HANDLERS = (Kinds,)
