"""Profile a worker: `python -m benchmarks.programs.profiled steps|way COUNT` prints JSON about where its time goes.

A worker as an engine hosts it. `steps`: processor time of the thread that takes a step, in microseconds a job off a
full queue. `way`: what passes between the stations of a lone job on its way to the handler, in microseconds, the
median. Timing costs a little itself, so take no throughput or latency from these runs.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from benchmarks.ticks import Stamps
from penstock.config.settings import load_settings
from penstock.workers.engines import worker as worker_module
from penstock.workers.executor import admission, claiming, recorder
from penstock.workers.executor.attempt.run import AttemptRunner
from penstock.workers.executor.executor import Executor


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
    worker.start()
    while stamps.count() < count:
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


if __name__ == "__main__":
    import os
    from pathlib import Path

    measure = {"steps": steps, "way": way}[sys.argv[1]]
    print(json.dumps(measure(int(sys.argv[2]), Stamps(Path(os.environ["BENCH_TICKS"])))))
