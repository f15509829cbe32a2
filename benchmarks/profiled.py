"""Where a worker's time goes: `python -m benchmarks.profiled COUNT`, in a process of its own. Prints JSON.

A worker as an engine hosts it, with its steps timed by the processor time of the thread that takes them, in
microseconds a job. Timing costs a little itself, so this is no run to take a throughput from.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from benchmarks.ticks import Stamps
from penstock.config.settings import load_settings
from penstock.workers import executor as executor_module
from penstock.workers import worker as worker_module


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


def main(count: int, stamps: Stamps) -> dict[str, float]:
    import benchmarks.apps.ours  # noqa: F401  # its handlers

    costs: Counter[str] = Counter()
    executor_module.decode = timed(costs, "decode", executor_module.decode)
    executor_module.claim = timed(costs, "claim", executor_module.claim)
    executor_module.run_attempt = timed_async(costs, "run", executor_module.run_attempt)
    recording = sys.modules.get("penstock.workers.recorder", executor_module)
    recording.record = timed(costs, "record", recording.record)  # type: ignore[attr-defined]
    worker = worker_module.Worker(load_settings(), engine="inline", queues=["bench"], concurrency=100)
    worker.consumer.fetch = timed(costs, "fetch", worker.consumer.fetch)  # type: ignore[method-assign]
    worker.consumer.ack = timed(costs, "acknowledge", worker.consumer.ack)  # type: ignore[method-assign]
    begin = time.process_time()
    worker.start()
    while stamps.count() < count:
        time.sleep(0.05)
    worker.stop()
    total = (time.process_time() - begin) * 1e9
    costs["the executor around them"] = int(total) - sum(costs.values())
    return {step: cost / count / 1000 for step, cost in costs.items()}


if __name__ == "__main__":
    import os
    from pathlib import Path

    print(json.dumps(main(int(sys.argv[1]), Stamps(Path(os.environ["BENCH_TICKS"])))))
