"""Metrics of a dispatcher: what it has sent and deleted, and what waits for it in the ledger."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, Metric

from penstock.config.process.readings import Readings, Sample
from penstock.config.settings import Settings
from penstock.ledger.queries import fleet
from penstock.ledger.queries.fleet_metrics import FleetMetrics
from penstock.ledger.rows.waits import limit_waits
from penstock.ledger.sql.database import Database
from penstock.producers.limits.rules import Rule
from penstock.producers.senders import open_backlogs
from penstock.schemas.states import FINAL

GAUGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "penstock_dispatcher_due": ("Jobs that are due and not sent.", ()),
    "penstock_dispatcher_lateness_seconds": ("How long the first of them is due.", ()),
    "penstock_schedule_lateness_seconds": ("How long the schedule that is most overdue is due.", ()),
    "penstock_limit_waiting": ("Jobs that wait for a slot of a limit.", ("limit",)),
}
SOURCES = ("due", "outbox", "stock", "workflow")
ROWS = ("audit", "dead_letters", "firings", "held", "jobs", "keys", "workers")


class ObservedDispatcher(Protocol):
    """The part of a dispatcher that its metrics need."""

    settings: Settings
    database: Database

    def sent(self) -> Counter[str]: ...

    def pruned(self) -> Counter[str]: ...


def dispatcher_collectors(dispatcher: ObservedDispatcher) -> list[Readings]:
    """Metrics of a dispatcher and of the whole installation, to be registered. Their threads run.

    Close them before the dispatcher is stopped, which closes its database.
    """
    settings = dispatcher.settings
    collectors = [
        DispatcherMetrics(dispatcher),
        FleetMetrics(settings, dispatcher.database, open_backlogs(settings)),
    ]
    for collector in collectors:
        collector.start()
    return collectors


class DispatcherMetrics(Readings):
    """The metrics. The counters are this dispatcher's; the gauges are of the ledger, and so the same of each."""

    def __init__(self, dispatcher: ObservedDispatcher) -> None:
        self._dispatcher, self._database = dispatcher, dispatcher.database
        readers = {
            "due jobs": self._due,
            "their lateness": self._lateness,
            "schedules": self._schedules,
            "limits": self._limits,
        }
        super().__init__("penstock dispatcher metrics", GAUGES, readers)

    def collect(self) -> Iterable[Metric]:
        """The counters, and the last readings of the gauges. Reads memory alone."""
        sent = CounterMetricFamily("penstock_dispatcher_sent", "Jobs that were sent.", labels=("source",))
        counts = self._dispatcher.sent()
        for source in SOURCES:
            sent.add_metric([source], counts[source])
        pruned = CounterMetricFamily("penstock_pruned", "Rows that retention deleted.", labels=("rows",))
        deleted: Counter[str] = Counter()
        for rows, count in self._dispatcher.pruned().items():
            deleted["jobs" if rows in FINAL else rows.replace(" ", "_")] += count
        for rows in ROWS:
            pruned.add_metric([rows], deleted[rows])
        yield from (sent, pruned)
        yield from super().collect()

    def _due(self) -> Iterator[Sample]:
        yield "penstock_dispatcher_due", (), fleet.count_due(self._database)

    def _lateness(self) -> Iterator[Sample]:
        yield "penstock_dispatcher_lateness_seconds", (), fleet.lateness(self._database).total_seconds()

    def _schedules(self) -> Iterator[Sample]:
        overdue = fleet.overdue_schedule(self._database)
        late = 0.0 if overdue is None else overdue.lateness.total_seconds()
        yield "penstock_schedule_lateness_seconds", (), late

    def _limits(self) -> Iterator[Sample]:
        waiting: Counter[str] = Counter()
        for slot, count in limit_waits.counts(self._database).items():
            waiting[Rule.of_slot(slot)[0]] += count
        for limit, count in waiting.items():
            yield "penstock_limit_waiting", (limit,), count
