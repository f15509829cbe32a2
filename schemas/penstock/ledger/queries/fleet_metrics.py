"""`FleetMetrics`: metrics of the whole installation, read from the ledger, the broker and the outboxes.

Each dispatcher and gateway has them, so all report the same numbers, whichever is scraped.
"""

from __future__ import annotations

import operator
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial

from penstock.config.process.readings import Readings, Sample
from penstock.config.settings import Settings
from penstock.ledger.members import heartbeats
from penstock.ledger.members.roster import Roster
from penstock.ledger.queries.fleet import OTHER, QueueBacklogs, count_resting, open_dead_letters
from penstock.ledger.queries.stats import backlog, outbox_name
from penstock.ledger.sql.database import Database
from penstock.schemas.jobs.kind import DISPATCHER_QUEUE, registry

MOST_QUEUES, MOST_DEAD_LETTERS = 500, 200
"""Series of a metric by queue, and of dead letters by queue and kind. The rest of the latter are `other`."""
LONGEST_LABEL = 128

GAUGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "penstock_queue_depth": ("Jobs that wait in the broker.", ("queue",)),
    "penstock_queue_oldest_seconds": ("How long the one that waits longest is there.", ("queue",)),
    "penstock_queue_consumers": ("Live workers that consume the queue.", ("queue",)),
    "penstock_dead_letters": ("Dead letters that wait for a decision.", ("queue", "kind")),
    "penstock_workers": ("Live workers.", ("engine",)),
    "penstock_dispatchers": ("Live dispatchers.", ()),
    "penstock_outbox_jobs": ("Jobs that are committed and not sent.", ("outbox",)),
    "penstock_outbox_lag_seconds": ("How long the first of them waits.", ("outbox",)),
    "penstock_workflows_resting": (
        "Workflows whose code was changed, which wait for a dispatcher with the code they began with.",
        ("kind",),
    ),
}


class FleetMetrics(Readings):
    """The metrics. `start` starts the thread that reads them; a scrape touches neither broker nor database.

    Arguments:
        ledger: not closed with this.
        backlogs: closed with this.
    """

    def __init__(self, settings: Settings, ledger: Database, backlogs: QueueBacklogs) -> None:
        self._settings, self._ledger, self._backlogs = settings, ledger, backlogs
        self._outboxes = {"ledger": ledger}
        for url in settings.outbox_urls:
            if url != ledger.url:
                self._outboxes[outbox_name(url)] = Database(url, pool_size=1, private=False)
        self._has_read_workers = False
        self._kinds: set[str] = set()
        """Kinds that workers handle, or did."""
        self._consumed: set[str] = set()
        """Queues that workers consume, or did."""
        self._found: set[str] = set()
        """Queues that the broker has."""
        super().__init__(
            "penstock fleet metrics",
            GAUGES,
            {
                "workers": self._workers,
                "queues": self._queues,
                "dead letters": self._dead_letters,
                "workflows": self._workflows,
                **{f"outbox {name}": self._outbox(name) for name in self._outboxes},
            },
            age=("penstock_fleet_age_seconds", "Age of the oldest of the numbers about the whole installation."),
        )

    def disconnect(self) -> None:
        self._backlogs.close()
        for database in self._outboxes.values():
            if database is not self._ledger:
                database.close()

    def _known_queues(self) -> list[str]:
        """Our queues, then those that only the broker has: no more than `MOST_QUEUES`."""
        ours = {DISPATCHER_QUEUE, *self._settings.queues, *registry.queues(), *self._consumed}
        return [*sorted(ours), *sorted(self._found - ours)][:MOST_QUEUES]

    def _workers(self) -> Iterator[Sample]:
        if not self._has_read_workers:
            former = heartbeats.known_kinds(self._ledger)
            self._kinds |= set(former)
            self._consumed |= set(former.values())
            self._has_read_workers = True
        roster = self._ledger.read(partial(Roster.read, lease=self._settings.lease))
        self._consumed |= roster.queues()
        self._kinds.update(*(worker.kinds for worker in roster.workers))
        queues = self._known_queues()
        consumers, engines = roster.consumers(), Counter(worker.engine for worker in roster.workers)
        yield from _by_label("penstock_queue_consumers", {queue: consumers.get(queue, 0) for queue in queues})
        expected: set[str] = {self._settings.queue(queue).engine for queue in queues if queue != DISPATCHER_QUEUE}
        yield from _by_label("penstock_workers", {engine: engines[engine] for engine in expected | engines.keys()})
        yield "penstock_dispatchers", (), len(roster.dispatchers)

    def _queues(self) -> Iterator[Sample]:
        backlogs = self._backlogs.read(self._known_queues())
        self._found = set(backlogs)
        listed = {queue: backlogs[queue] for queue in self._known_queues() if queue in backlogs}
        yield from _by_label("penstock_queue_depth", {queue: jobs for queue, (jobs, _) in listed.items()})
        ages = {queue: oldest for queue, (_, oldest) in listed.items() if oldest is not None}
        yield from _by_label("penstock_queue_oldest_seconds", ages, max)

    def _dead_letters(self) -> Iterator[Sample]:
        counts = open_dead_letters(self._ledger)
        # Strangers may name kinds as they like; ours are shown first.
        ours = {*(kind.name for kind in registry), *self._kinds}
        pairs = sorted(counts, key=lambda pair: (pair == (OTHER, OTHER), pair[1] not in ours, -counts[pair], pair))
        series: Counter[tuple[str, str]] = Counter()
        for number, (queue, kind) in enumerate(pairs):
            labels = (_label(queue), _label(kind)) if number < MOST_DEAD_LETTERS else (OTHER, OTHER)
            series[labels] += counts[queue, kind]
        for labels, count in series.items():
            yield "penstock_dead_letters", labels, count

    def _workflows(self) -> Iterator[Sample]:
        return _by_label("penstock_workflows_resting", count_resting(self._ledger))

    def _outbox(self, name: str) -> Callable[[], Iterator[Sample]]:
        def read_backlog() -> Iterator[Sample]:
            size = backlog(self._outboxes[name])
            yield "penstock_outbox_jobs", (name,), size.jobs
            yield "penstock_outbox_lag_seconds", (name,), size.lag.total_seconds()

        return read_backlog


def _by_label(
    metric: str, values: Mapping[str, float], join: Callable[[float, float], float] = operator.add
) -> Iterator[Sample]:
    """Samples of a metric with one label.

    Arguments:
        join: values of names that are the same as a label.
    """
    joined: dict[str, float] = {}
    for name, value in values.items():
        label = _label(name)
        joined[label] = join(joined[label], value) if label in joined else value
    for label, value in joined.items():
        yield metric, (label,), value


def _label(text: str) -> str:
    """A name as a label: short, and without control characters and the like, also if a stranger chose it."""
    return re.sub(r"[^\w.:@/ -]", "?", text[:LONGEST_LABEL])
