"""Profile a worker: `python -m benchmarks.programs.profiled MEASURE COUNT` prints JSON about its time.

A worker as an engine hosts it. Timing costs a little itself, so take no throughput or latency from these runs.

- `steps`: processor time of the thread that takes a step, in microseconds a job off a full queue.
- `way`: what passes between the stations of a lone job on its way to the handler, in microseconds, the median.
- `counting`: processor time of counting attempts, and of the whole worker, in microseconds a job.
- `spans`: processor time that OpenTelemetry adds to a job that is not sampled, and of the whole worker, likewise.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextvars import Context
from datetime import UTC, datetime
from typing import Any
from unittest.mock import patch

from benchmarks.ticks import Stamps
from penstock.config.settings import load_settings
from penstock.ledger.transitions.claim import Claim
from penstock.ledger.transitions.outcome import AttemptOutcome
from penstock.schemas.states import Outcome, State
from penstock.schemas.wire.codec import decode, encode
from penstock.workers.engines import worker as worker_module
from penstock.workers.executor import admission, claiming, recorder
from penstock.workers.executor.attempt.run import AttemptRunner
from penstock.workers.executor.executor import Executor
from penstock.workers.executor.runtime.observers import Observers
from penstock.workers.executor.runtime.rates import RateCounter
from penstock.workers.telemetry.traces.spans import ProcessSpans

DRAIN = "the drain"
UNSAMPLED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"


def timed(costs: Counter[str], step: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        begin = time.thread_time_ns()
        try:
            return function(*arguments, **options)
        finally:
            costs[step] += time.thread_time_ns() - begin

    return call


def timed_async(costs: Counter[str], step: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """For a coroutine that does not wait: the others' time would count."""

    async def call(*arguments: Any, **options: Any) -> Any:
        begin = time.thread_time_ns()
        try:
            return await function(*arguments, **options)
        finally:
            costs[step] += time.thread_time_ns() - begin

    return call


def _worker() -> worker_module.Worker:
    import benchmarks.apps.ours  # noqa: F401  # its handlers

    return worker_module.Worker(load_settings(), engine="inline", queues=["bench"], concurrency=500)


def _run(worker: worker_module.Worker, count: int, stamps: Stamps) -> None:
    before = stamps.count()
    worker.start()
    while stamps.count() < before + count:
        time.sleep(0.05)
    worker.stop()


def steps(count: int, stamps: Stamps) -> dict[str, float]:
    costs: Counter[str] = Counter()
    admission.decode = timed(costs, "decode", admission.decode)
    claiming.claim = timed(costs, "claim", claiming.claim)
    AttemptRunner.run = timed_async(costs, "run", AttemptRunner.run)  # type: ignore[method-assign]
    recorder.record = timed(costs, "record", recorder.record)
    worker = _worker()
    worker.consumer.fetch = timed(costs, "fetch", worker.consumer.fetch)  # type: ignore[method-assign]
    worker.consumer.ack = timed(costs, "acknowledge", worker.consumer.ack)  # type: ignore[method-assign]
    begin = time.process_time()
    _run(worker, count, stamps)
    total = (time.process_time() - begin) * 1e9
    costs["the executor around them"] = int(total) - sum(costs.values())
    return {step: cost / count / 1000 for step, cost in costs.items()}


def way(count: int, stamps: Stamps) -> dict[str, float]:
    """Time between the stations. The number of each job is the time it was sent at; jobs come one at a time."""
    latest: dict[str, int] = {}
    stations: dict[int, tuple[int, ...]] = {}
    receive, run = Executor._receive, Executor._run

    def received(self: Any) -> None:
        latest["received"] = time.monotonic_ns()
        receive(self)

    def started(self: Any, entry: Any, claim: Any) -> None:
        stations[entry.message.job.number] = (latest["fetched"], latest["received"], time.monotonic_ns())
        run(self, entry, claim)

    Executor._receive, Executor._run = received, started  # type: ignore[method-assign]
    worker = _worker()  # made after that: it binds these methods
    fetch = worker.consumer.fetch

    def fetched(*arguments: Any) -> Any:
        deliveries = fetch(*arguments)
        latest["fetched"] = time.monotonic_ns()
        return deliveries

    worker.consumer.fetch = fetched  # type: ignore[method-assign]
    _run(worker, count, stamps)
    ways = [(sent, *stations[sent], handled) for sent, handled in stamps.read()]
    names = ("call, broker and fetch", "to the loop's thread", "decode, check, claim", "start of the handler")
    legs = {name: [(way[n + 1] - way[n]) / 1000 for way in ways] for n, name in enumerate(names)}
    return {name: statistics.median(leg) for name, leg in legs.items()}


def counting(count: int, stamps: Stamps) -> dict[str, float]:
    costs: Counter[str] = Counter()
    RateCounter.add = timed(costs, "counting", RateCounter.add)  # type: ignore[method-assign]
    worker = _worker()
    begin = time.process_time()
    _run(worker, count, stamps)
    return {"counting": costs["counting"] / count / 1000, DRAIN: (time.process_time() - begin) / count * 1e6}


def spans(count: int, stamps: Stamps) -> dict[str, float]:
    cost = {"without": _spans(count)}  # before OpenTelemetry is imported
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, DEFAULT_ON

    for name, sampler in (("always_off", ALWAYS_OFF), ("parentbased_always_on", DEFAULT_ON)):
        with patch.object(trace, "_TRACER_PROVIDER", TracerProvider(sampler)):  # its setter works once
            cost[name] = _spans(count)
    adds = {f"{name} adds": value - cost["without"] for name, value in cost.items() if name != "without"}
    worker = _worker()
    begin = time.process_time()
    _run(worker, count, stamps)
    return {**adds, DRAIN: (time.process_time() - begin) / count * 1e6}


def _spans(count: int) -> float:
    """The median of what the observer of spans takes for the beginning and end of a job that is not sampled."""
    from benchmarks.apps.ours import Noop

    now = datetime.now(UTC)
    observers = Observers([ProcessSpans("child")])
    message = decode(encode(Noop(number=1, text="twenty-four characters.."), traceparent=UNSAMPLED))
    claim = Claim(message, 1, 1, 0, 0, now)
    outcome = AttemptOutcome(claim, Outcome.SUCCEEDED, State.SUCCEEDED, now)
    costs = []
    for _ in range(20):
        begin = time.thread_time_ns()
        for _ in range(count // 20):
            Context().run(observers.started, claim)
            observers.ended(outcome)
        costs.append((time.thread_time_ns() - begin) / (count // 20) / 1000)
    return statistics.median(costs)


if __name__ == "__main__":
    from pathlib import Path

    measure = {"steps": steps, "way": way, "counting": counting, "spans": spans}[sys.argv[1]]
    print(json.dumps(measure(int(sys.argv[2]), Stamps(Path(os.environ["BENCH_TICKS"])))))
