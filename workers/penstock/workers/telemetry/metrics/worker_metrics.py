"""`WorkerMetrics`: what a worker counts of its jobs and steps, for `/metrics`.

Attempts are counted once, for the ledger's rates, and come here many at a time. All are plain numbers, which become
metrics when they are read. prometheus_client's own counters take a lock and look their labels up each time, which costs
as much as a tenth of a short job.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from penstock.ledger.rows.rates.counting import Cell
from penstock.ledger.transitions.outcome import AttemptOutcome
from penstock.schemas.states import Outcome
from penstock.schemas.wire.codec import Message
from penstock.workers.executor.runtime.meter import Meter
from penstock.workers.executor.runtime.observers import Observer

JOB_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 3600.0)
STEP_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
STEPS = ("fetch", "claim", "record", "acknowledge")
MOST_SERIES = 500
"""Kinds times queues that are counted singly; more are counted together."""
OTHER = "other"
"""Label of those."""
_AT_ONCE = 1000
"""Values of a histogram that are counted together."""


class Status(Protocol):
    """A worker as it is now. Safe from any thread."""

    @property
    def ready(self) -> bool: ...
    @property
    def slots(self) -> tuple[int, int]:
        """The slots that are used, and those that are free."""
        ...

    @property
    def in_flight(self) -> int:
        """Jobs that were fetched and are not settled."""
        ...


class Histogram:
    """Counts of values by the bucket they are in. Single values wait on a list and are counted many at a time, which
    takes a fraction of the time."""

    __slots__ = ("_bounds", "_counting", "_waiting", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._waiting: list[float] = []
        self._counting = threading.Lock()
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        """Count a value. One thread adds."""
        self._waiting.append(value)
        if len(self._waiting) >= _AT_ONCE:
            self._count()

    def add_sorted(self, values: Sequence[float]) -> None:
        """Count values, ascending; one below 0, of a clock that is behind another, as 0. One thread at a time, and not
        in addition to `add`."""
        below = 0
        for bucket, bound in enumerate(self._bounds):
            before, below = below, bisect_right(values, bound, below)
            self.counts[bucket] += below - before
            if below == len(values):
                break
        self.counts[-1] += len(values) - below
        negative = bisect_left(values, 0.0)
        self.sum += sum(values[negative:] if negative else values)

    def buckets(self) -> list[tuple[str, float]]:
        """Upper bounds, and how many values are not above them. Safe from any thread."""
        self._count()
        bounds = [*map(str, self._bounds), "+Inf"]
        return list(zip(bounds, accumulate(self.counts.copy()), strict=True))

    def _count(self) -> None:
        """Count the values that wait, unless another thread does so now."""
        if not self._waiting or not self._counting.acquire(blocking=False):
            return
        try:
            values = self._waiting[:]
            del self._waiting[: len(values)]  # more may have come
            values.sort()
            self.add_sorted(values)
        finally:
            self._counting.release()


class _Series:
    """The counts of the jobs of one kind on one queue."""

    __slots__ = ("crashes", "ended", "quarantines", "run", "wait")

    def __init__(self) -> None:
        self.ended = {outcome.value: 0 for outcome in Outcome}
        self.wait, self.run = Histogram(JOB_BUCKETS), Histogram(JOB_BUCKETS)
        self.crashes = self.quarantines = 0


class _AllSeries(dict[tuple[str, str], _Series]):
    """The series by kind and queue. A missing one is made, up to the limit."""

    def __missing__(self, key: tuple[str, str]) -> _Series:
        if len(self) >= MOST_SERIES:
            key = (OTHER, OTHER)
        return self.setdefault(key, _Series())


class WorkerMetrics(Observer, Meter, Collector):
    """An observer of a worker's jobs, and the meter of its steps.

    Arguments:
        engine: label of the jobs.
    """

    def __init__(self, *, engine: str) -> None:
        self._engine = engine
        self._series = _AllSeries()
        self._refresh: Callable[[], None] = lambda: None
        self._refused: Counter[str] = Counter()
        self._steps = {step: Histogram(STEP_BUCKETS) for step in STEPS}
        self._leases_lost = 0
        self._worker: Status | None = None

    def watch(self, worker: Status) -> None:
        """Report the slots and the readiness of this worker, too."""
        self._worker = worker

    def read_from(self, refresh: Callable[[], None]) -> None:
        self._refresh = refresh

    # Observer and meter.

    def refused(self, message: Message, reason: str) -> None:
        self._refused[reason] += 1

    def failed(self, outcome: AttemptOutcome) -> None:
        message = outcome.claim.message
        series = self._series[message.kind.name, message.queue]
        series.crashes += outcome.crashed
        series.quarantines += outcome.reason == "crashed"

    def attempts(self, cell: Cell, count: int, runs: Sequence[float], waits: Sequence[float]) -> None:
        kind, queue, outcome = cell
        series = self._series[kind, queue]
        series.ended[outcome] += count
        series.run.add_sorted(runs)
        series.wait.add_sorted(waits)

    def crashed(self, message: Message) -> None:
        self._series[message.kind.name, message.queue].crashes += 1

    def lost(self, outcome: AttemptOutcome) -> None:
        self._leases_lost += 1

    def step(self, name: str, seconds: float) -> None:
        self._steps[name].add(seconds)  # each step is of one thread

    # Collector: in any thread.

    def describe(self) -> Iterable[Metric]:
        """Name no metrics: none is registered twice."""
        return ()

    def collect(self) -> Iterable[Metric]:
        yield from self._of_jobs()
        steps = HistogramMetricFamily(
            "penstock_worker_step_seconds", "Duration of the steps of a worker, each for many jobs.", labels=("step",)
        )
        for step, histogram in self._steps.items():
            steps.add_metric([step], histogram.buckets(), histogram.sum)
        refused = CounterMetricFamily("penstock_claims_refused", "Jobs that were not run, and why.", labels=("reason",))
        for reason, count in self._refused.copy().items():
            refused.add_metric([reason], count)
        yield from (steps, refused)
        yield CounterMetricFamily(
            "penstock_leases_lost",
            "Attempts whose outcome was dropped, since another worker had taken the job over.",
            self._leases_lost,
        )
        if self._worker is not None:
            yield from _of_worker(self._worker)

    def _of_jobs(self) -> Iterable[Metric]:
        self._refresh()
        labels = ("kind", "queue")
        ended = CounterMetricFamily("penstock_jobs", "Attempts that ended.", labels=(*labels, "outcome", "engine"))
        wait = HistogramMetricFamily(
            "penstock_job_wait_seconds", "From when a job was enqueued, or due, to its start.", labels=labels
        )
        run = HistogramMetricFamily("penstock_job_run_seconds", "From an attempt's start to its end.", labels=labels)
        crashes = CounterMetricFamily("penstock_job_crashes", "Crashes under a job.", labels=labels)
        quarantines = CounterMetricFamily(
            "penstock_quarantines", "Jobs that became dead letters for their crashes.", labels=labels
        )
        for key, series in list(self._series.items()):
            for outcome, count in series.ended.items():
                ended.add_metric([*key, outcome, self._engine], count)
            wait.add_metric(list(key), series.wait.buckets(), series.wait.sum)
            run.add_metric(list(key), series.run.buckets(), series.run.sum)
            crashes.add_metric(list(key), series.crashes)
            quarantines.add_metric(list(key), series.quarantines)
        return ended, wait, run, crashes, quarantines


def _of_worker(worker: Status) -> Iterable[Metric]:
    slots = GaugeMetricFamily("penstock_worker_slots", "Slots that are used or free.", labels=("state",))
    for state, count in zip(("used", "free"), worker.slots, strict=True):
        slots.add_metric([state], count)
    in_flight = GaugeMetricFamily(
        "penstock_worker_in_flight", "Jobs that were fetched and are not settled.", worker.in_flight
    )
    return slots, in_flight, GaugeMetricFamily("penstock_worker_ready", "1 while it takes jobs.", int(worker.ready))
