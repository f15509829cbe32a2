"""A span for each attempt, current in its handler, with spans for its claim, its run and its record.

They follow the semantic conventions of messaging; no payload, key or tenant is in them, and an error only as the ledger
has it, without the values of sensitive fields. https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from penstock.ledger.transitions.claim import Claim
from penstock.ledger.transitions.outcome import AttemptOutcome
from penstock.producers.traces.loaded import inherit, tracing
from penstock.producers.traces.sending import SYSTEM
from penstock.schemas.states import Outcome
from penstock.workers.executor.runtime.observers import Observer

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span

    from penstock.producers.traces.otel import Tracing

_LOOK_SECONDS = 1.0
"""Between two looks whether the application has set a provider of spans."""
_FAILED = frozenset({Outcome.RETRY, Outcome.DEAD, Outcome.CRASHED})


@dataclass(slots=True)
class _Open:
    """A recorded span that has not ended.

    Attributes:
        context: in which it is the current one.
        started_at: of the handler, as `time.time_ns` says it.
    """

    span: Span
    context: Context
    started_at: int


class ProcessSpans(Observer):
    """Makes the spans of attempts, and has handlers run in the trace of their job. Without a provider of spans it does
    only the latter.

    Arguments:
        mode: whether an attempt continues the trace of its job (`child`), or begins one with a link to it (`linked`).
    """

    def __init__(self, mode: Literal["child", "linked"]) -> None:
        self._linked = mode == "linked"
        self._tracing: Tracing | None = None
        self._look_at = 0.0
        self._open: dict[str, _Open] = {}

    def started(self, claim: Claim) -> None:
        traceparent = claim.message.traceparent
        active = self._tracing or self._find()
        if active is not None and not active.refuses(None if self._linked else traceparent):
            self._begin(active, claim)
        elif traceparent:
            inherit(traceparent)

    def ended(self, outcome: AttemptOutcome) -> None:
        if (entry := self._open.pop(outcome.claim.message.id, None)) is not None:
            self._end(entry, outcome, str(outcome.name))

    def lost(self, outcome: AttemptOutcome) -> None:
        if (entry := self._open.pop(outcome.claim.message.id, None)) is not None:
            self._end(entry, outcome, "lost")

    def _find(self) -> Tracing | None:
        if "opentelemetry.trace" in sys.modules and (now := time.monotonic()) >= self._look_at:
            self._look_at = now + _LOOK_SECONDS
            self._tracing = tracing()
        return self._tracing

    def _begin(self, active: Tracing, claim: Claim) -> None:
        """Start the span of an attempt and make it the current one, for the rest of this context."""
        from opentelemetry import context, trace

        from penstock.producers.traces.otel import NOWHERE, span_context, within

        message, now = claim.message, time.time_ns()
        cause = span_context(message.traceparent)
        span = active.tracer.start_span(
            f"process {message.queue}",
            NOWHERE if self._linked else within(message.traceparent),
            trace.SpanKind.CONSUMER,
            _attributes(claim),
            [trace.Link(cause)] if cause.is_valid else (),
            start_time=claim.asked_at or now,
        )
        current = trace.set_span_in_context(span, NOWHERE)
        context.attach(current)
        if span.is_recording():
            self._open[message.id] = _Open(span, current, now)

    def _end(self, entry: _Open, outcome: AttemptOutcome, name: str) -> None:
        from opentelemetry.trace import StatusCode

        now, claim = time.time_ns(), outcome.claim
        finished_at = min(max(_nanoseconds(outcome.finished_at), entry.started_at), now)
        self._add(entry, "claim", claim.asked_at, entry.started_at)
        self._add(entry, "run", entry.started_at, finished_at)
        self._add(entry, "record", outcome.asked_at, now)
        span = entry.span
        span.set_attribute("penstock.outcome", name)
        if outcome.name in _FAILED:
            error = outcome.error or outcome.name
            event = {"exception.type": error.partition(":")[0], "exception.message": error}
            if outcome.traceback is not None:
                event["exception.stacktrace"] = outcome.traceback
            span.add_event("exception", event, finished_at)
            span.set_attribute("error.type", event["exception.type"])
            span.set_status(StatusCode.ERROR, error)
        span.end(now)

    def _add(self, entry: _Open, name: str, began: int, end: int) -> None:
        if began and self._tracing is not None:
            self._tracing.tracer.start_span(name, entry.context, start_time=began).end(end)


def _attributes(claim: Claim) -> dict[str, Any]:
    message = claim.message
    attributes = {
        "messaging.system": SYSTEM,
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": message.queue,
        "messaging.message.id": message.id,
        "penstock.kind": message.kind.name,
        "penstock.attempt": claim.attempt,
    }
    if claim.crashes:
        attributes["penstock.crashes"] = claim.crashes
    return attributes


def _nanoseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1_000_000) * 1_000
