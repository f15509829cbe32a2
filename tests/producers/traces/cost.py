"""Measures what the spans of workers cost a job, in µs of CPU: `python tests/producers/traces/cost.py`.

Each case runs in a process of its own, as a provider can be set once.
"""

from __future__ import annotations

import subprocess
import sys
import time
import timeit
from contextvars import Context
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

from penstock.ledger.transitions.claim import Claim
from penstock.ledger.transitions.outcome import AttemptOutcome
from penstock.schemas.states import Outcome, State
from penstock.workers.executor.runtime.observers import Observers
from penstock.workers.telemetry.traces.spans import ProcessSpans

CASES = {
    "no SDK": ("none", ""),
    "no SDK, a traceparent": ("none", "00"),
    "always_off": ("off", ""),
    "always_off, a traceparent": ("off", "00"),
    "parentbased_always_on, not sampled by its parent": ("on", "00"),
    "parentbased_traceidratio 0, no parent": ("ratio", ""),
    "sampled": ("on", "01"),
}
JOBS, REPEATS = 20_000, 9


def set_provider(sampler: str) -> None:
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased, TraceIdRatioBased

    samplers = {"off": ALWAYS_OFF, "on": ParentBased(ALWAYS_ON), "ratio": ParentBased(TraceIdRatioBased(0.0))}
    trace.set_tracer_provider(TracerProvider(sampler=samplers[sampler]))


def measure(sampler: str, flags: str) -> float:
    """µs of CPU per job of the hooks, without those of an empty list of observers."""
    if sampler != "none":
        set_provider(sampler)
    traceparent = f"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-{flags}" if flags else None
    message: Any = SimpleNamespace(id="1", kind=SimpleNamespace(name="k"), queue="q", traceparent=traceparent)
    now = datetime.now(UTC)
    claim = Claim(message, 1, 1, 0, 0, now, asked_at=time.time_ns())
    outcome = AttemptOutcome(claim, Outcome.SUCCEEDED, State.SUCCEEDED, now, asked_at=time.time_ns())

    def cost(observers: Observers) -> float:
        def job() -> None:
            observers.received(message)
            Context().run(observers.started, claim)
            observers.ended(outcome)

        return min(timeit.repeat(job, number=JOBS, repeat=REPEATS, timer=time.process_time)) / JOBS * 1e6

    return cost(Observers([ProcessSpans("child")])) - cost(Observers())


if __name__ == "__main__":
    if len(sys.argv) == 3:
        sys.stdout.write(f"{measure(*sys.argv[1:]):.2f}\n")
    else:
        for name, case in CASES.items():
            out = subprocess.run([sys.executable, __file__, *case], capture_output=True, text=True, check=True)
            sys.stdout.write(f"{out.stdout.strip():>7} µs  {name}\n")
