"""`WorkerMetrics`: what a worker counts of its jobs and steps, for `/metrics`.

The executor's loop puts jobs that start and end on a list, and counts those of a batch together, in plain numbers:
prometheus_client's own counters take a lock and look their labels up each time, which costs as much as a tenth of a
short job. They become its metrics when they are read.
"""

from __future__ import annotations

import logging
import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from penstock.ledger.transitions.claim import Claim
from penstock.ledger.transitions.outcome import AttemptOutcome
from penstock.schemas.states import Outcome
from penstock.schemas.wire.codec import Message
from penstock.workers.executor.runtime.meter import Meter

log = logging.getLogger("penstock.metrics")

JOB_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 3600.0)
STEP_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
STEPS = ("fetch", "claim", "record", "acknowledge")
MOST_SERIES = 500
"""Kinds times queues that are counted singly; more are counted together."""
_SUCCEEDED = Outcome.SUCCEEDED
OTHER = "other"
"""Label of those."""


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
    """Counts of values by the bucket they are in."""

    __slots__ = ("_bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        """Count a value; one below 0, of a clock that is behind another, as 0."""
        self.counts[bisect_left(self._bounds, value)] += 1
        if value > 0.0:
            self.sum += value

    def buckets(self) -> list[tuple[str, float]]:
        """Upper bounds, and how many values are not above them."""
        bounds = [*map(str, self._bounds), "+Inf"]
        return list(zip(bounds, accumulate(self.counts.copy()), strict=True))


class _Series:
    """The counts of the jobs of one kind on one queue."""

    __slots__ = ("crashes", "others", "quarantines", "run", "succeeded", "wait")

    def __init__(self) -> None:
        self.succeeded = 0
        self.others = {outcome: 0 for outcome in Outcome if outcome is not _SUCCEEDED}
        self.wait, self.run = Histogram(JOB_BUCKETS), Histogram(JOB_BUCKETS)
        self.crashes = self.quarantines = 0


class _AllSeries(dict[tuple[str, str], _Series]):
    """The series by kind and queue. A missing one is made, up to the limit."""

    def __missing__(self, key: tuple[str, str]) -> _Series:
        if len(self) >= MOST_SERIES:
            key = (OTHER, OTHER)
        return self.setdefault(key, _Series())


class WorkerMetrics(Meter, Collector):
    """An observer of a worker's jobs, and the meter of its steps.

    Arguments:
        engine: label of the jobs.
    """

    def __init__(self, *, engine: str) -> None:
        self._engine = engine
        self._series = _AllSeries()
        self._refused: Counter[str] = Counter()
        self._steps = {step: Histogram(STEP_BUCKETS) for step in STEPS}
        self._leases_lost = 0
        self._worker: Status | None = None
        self._claims: list[Claim] = []
        self._outcomes: list[AttemptOutcome] = []
        self._counting = threading.Lock()
        # As an observer. Not methods: to call one takes as long as the rest of it.
        self.started: Callable[[Claim], None] = self._claims.append
        self.ended: Callable[[AttemptOutcome], None] = self._outcomes.append

    def watch(self, worker: Status) -> None:
        """Report the slots and the readiness of this worker, too."""
        self._worker = worker

    # Observer and meter: on the executor's loop.

    def received(self, message: Message) -> None:
        pass

    def refused(self, message: Message, reason: str) -> None:
        self._refused[reason] += 1

    def crashed(self, message: Message) -> None:
        self._series[message.kind.name, message.queue].crashes += 1

    def lost(self, outcome: AttemptOutcome) -> None:
        self._leases_lost += 1

    def step(self, name: str, seconds: float) -> None:
        self._steps[name].add(seconds)  # each step is of one thread
        if name == "acknowledge":
            self._count()

    # On the loop, or in the thread of a scrape.

    def _count(self) -> None:
        """Count the jobs that have started and ended since the last call; never raises."""
        if not self._counting.acquire(blocking=False):  # the other thread is at it
            return
        try:
            claims, outcomes = self._claims[:], self._outcomes[:]
            del self._claims[: len(claims)], self._outcomes[: len(outcomes)]  # more may have come
            self._count_starts(claims)
            self._count_ends(outcomes)
        except Exception:
            log.exception("some jobs are not in the metrics")
        finally:
            self._counting.release()

    def _count_starts(self, claims: Sequence[Claim]) -> None:
        kind = queue = None
        for claim in claims:
            message = claim.message
            if message.kind is not kind or message.queue != queue:  # most of a batch are alike
                kind, queue = message.kind, message.queue
                add = self._series[kind.name, queue].wait.add
            if (since := message.ready_at or message.due_at or message.sent_at) is not None:
                add((claim.started_at - since).total_seconds())

    def _count_ends(self, outcomes: Sequence[AttemptOutcome]) -> None:
        kind = queue = None
        for outcome in outcomes:
            claim = outcome.claim
            message = claim.message
            if message.kind is not kind or message.queue != queue:
                kind, queue = message.kind, message.queue
                series = self._series[kind.name, queue]
            if outcome.name is _SUCCEEDED:
                series.succeeded += 1
            else:
                series.others[outcome.name] += 1
                series.crashes += outcome.crashed
                if outcome.reason == "crashed":
                    series.quarantines += 1
                    if claim.quarantine:
                        continue  # it did not run
            series.run.add((outcome.finished_at - claim.started_at).total_seconds())

    # Collector: in any thread.

    def describe(self) -> Iterable[Metric]:
        """Name no metrics: none is registered twice."""
        return ()

    def collect(self) -> Iterable[Metric]:
        self._count()
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
            for outcome, count in ((_SUCCEEDED, series.succeeded), *series.others.items()):
                ended.add_metric([*key, outcome.value, self._engine], count)
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
