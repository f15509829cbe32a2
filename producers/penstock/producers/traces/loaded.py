"""OpenTelemetry, where this process has loaded it: for the jobs that it runs, and for its spans."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from penstock.producers.traces.request import set_inherited

if TYPE_CHECKING:
    from penstock.producers.traces.otel import Tracing

_attach: Callable[[], Any] | None = None


def inherit(traceparent: str) -> None:
    """Run the rest of this context, which is that of one job, in the job's trace.

    Where OpenTelemetry is loaded its current span is the one that the traceparent names, so that its samplers follow
    the decision that was made for it.
    """
    global _attach
    set_inherited(traceparent)
    if _attach is not None:
        _attach()
    elif "opentelemetry.trace" in sys.modules:
        from penstock.producers.traces.otel import attach_inherited

        _attach = attach_inherited
        _attach()


def tracing() -> Tracing | None:
    """The tracer of this process; None: it has no provider of spans."""
    if "opentelemetry.trace" not in sys.modules:
        return None
    from penstock.producers.traces.otel import find_tracing

    return find_tracing()
