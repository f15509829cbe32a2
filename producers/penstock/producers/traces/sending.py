"""Spans of messages that are sent: by a producer, an outbox, a schedule or a dispatcher.

They follow the semantic conventions of messaging. None of them has a payload, key or tenant in it.
https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from penstock.producers.traces.loaded import tracing
from penstock.schemas.wire.codec import HEADER, Envelope

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from penstock.producers.traces.otel import Tracing

log = logging.getLogger("penstock.traces")

SYSTEM = "penstock"
_NOTHING = nullcontext()


def sending(envelopes: Sequence[Envelope], operation: str = "send") -> AbstractContextManager[None]:
    """A producer span around the sending of jobs, which carry its traceparent from now on. It is the current span
    within. Where this process has no provider of spans, the jobs keep the traceparent that they have.

    Arguments:
        operation: `send`, or `create` where someone else sends them.
    """
    active = tracing()
    if active is None or not envelopes:
        return _NOTHING
    try:
        return _open(active, envelopes, operation) or _NOTHING
    except Exception:
        log.exception("no span for %d jobs that are sent", len(envelopes))
        return _NOTHING


def relayed(envelopes: Iterable[Envelope], began: int, source: str) -> None:
    """Record what a dispatcher has sent: a span in the trace of each job that is sampled. Raises nothing.

    Arguments:
        began: the beginning of the sending, as `time.time_ns` says it.
        source: where the jobs came from: `due`, `outbox`, `workflow` or `stock`.
    """
    try:
        if (active := tracing()) is None:
            return
        from opentelemetry.trace import SpanKind

        from penstock.producers.traces.otel import within

        end = time.time_ns()
        for envelope in envelopes:
            traceparent = traceparent_in(envelope)
            if not traceparent or active.refuses(traceparent):
                continue
            attributes = _attributes([envelope], "send") | {"penstock.source": source}
            context = within(traceparent)
            name = _name("send", attributes)
            active.tracer.start_span(name, context, SpanKind.CLIENT, attributes, start_time=began).end(end)
    except Exception:
        log.exception("no spans for jobs that were sent")


class Firings:
    """The spans of one round of firings: each schedule begins a trace, which its jobs carry."""

    def __init__(self) -> None:
        self._tracing = tracing()
        self._spans: dict[str, Span] = {}

    def stamp(self, schedule: str, envelope: Envelope) -> None:
        """Put a job of a schedule into a new trace. Raises nothing."""
        if self._tracing is None:
            return
        try:
            self._stamp(self._tracing, schedule, envelope)
        except Exception:
            log.exception("no span for a job of schedule %s", schedule)

    def _stamp(self, active: Tracing, schedule: str, envelope: Envelope) -> None:
        from opentelemetry.trace import SpanKind

        from penstock.producers.traces.otel import NOWHERE, traceparent_of, unsampled_root

        if active.refuses(None):
            _stamp([envelope], unsampled_root())
            return
        if (span := self._spans.get(schedule)) is None:  # a transaction may run twice
            attributes = _attributes([envelope], "create") | {"penstock.schedule": schedule}
            name = _name("create", attributes)
            span = active.tracer.start_span(name, NOWHERE, SpanKind.PRODUCER, attributes)
            self._spans[schedule] = span
        span.set_attribute("messaging.message.id", envelope.id)
        _stamp([envelope], traceparent_of(span))

    def end(self) -> None:
        """End the spans: the jobs are on record. What is not ended is never exported."""
        for span in self._spans.values():
            span.end()


def traceparent_in(envelope: Envelope) -> str | None:
    """Traceparent that an envelope carries; None: it carries none."""
    ours = envelope.headers.get(HEADER)
    header = (ours if isinstance(ours, dict) else envelope.headers).get("traceparent")
    return header if isinstance(header, str) else None


def _open(active: Tracing, envelopes: Sequence[Envelope], operation: str) -> AbstractContextManager[None] | None:
    from opentelemetry.trace import Link, SpanKind, get_current_span

    from penstock.producers.traces.otel import span_context, traceparent_of, unsampled_root, within

    traceparent = traceparent_in(envelopes[0])
    together = [envelope for envelope in envelopes if traceparent_in(envelope) == traceparent]
    if active.refuses(traceparent):
        if traceparent is None:
            _stamp(together, unsampled_root())
        return None
    parent = None if traceparent == traceparent_of(get_current_span()) else within(traceparent)
    others = {traceparent_in(envelope) for envelope in envelopes} - {traceparent, None}
    links = [Link(other) for other in map(span_context, others) if other.is_valid]
    attributes = _attributes(envelopes, operation)
    span = active.tracer.start_span(_name(operation, attributes), parent, SpanKind.PRODUCER, attributes, links)
    if (own := traceparent_of(span)) is None:
        return None
    _stamp(together, own)
    return _Current(span)


class _Current:
    """The current span within; it ends with an error if the block does."""

    def __init__(self, span: Span) -> None:
        self._span = span

    def __enter__(self) -> None:
        from opentelemetry import context
        from opentelemetry.trace import set_span_in_context

        self._token = context.attach(set_span_in_context(self._span))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        from opentelemetry import context
        from opentelemetry.trace import StatusCode

        context.detach(self._token)
        if kind is not None and self._span.is_recording():
            self._span.set_attribute("error.type", kind.__qualname__)  # and not its text, which may name a key
            self._span.set_status(StatusCode.ERROR)
        self._span.end()


def _attributes(envelopes: Sequence[Envelope], operation: str) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        "messaging.system": SYSTEM,
        "messaging.operation.name": operation,
        "messaging.operation.type": operation,
    }
    for name, values in (
        ("messaging.destination.name", {_queue(envelope) for envelope in envelopes}),
        ("penstock.kind", {envelope.kind for envelope in envelopes}),
    ):
        if len(values) == 1:
            attributes[name] = values.pop()
    if len(envelopes) == 1:
        attributes["messaging.message.id"] = envelopes[0].id
    else:
        attributes["messaging.batch.message_count"] = len(envelopes)
    return attributes


def _name(operation: str, attributes: dict[str, Any]) -> str:
    queue = attributes.get("messaging.destination.name")
    return operation if queue is None else f"{operation} {queue}"


def _queue(envelope: Envelope) -> str:
    """Queue in which the job will run, though it may wait in the dispatcher's first."""
    ours = envelope.headers.get(HEADER)
    return str((isinstance(ours, dict) and ours.get("queue")) or envelope.queue)


def _stamp(envelopes: Iterable[Envelope], traceparent: str | None) -> None:
    if traceparent is not None:
        for envelope in envelopes:
            envelope.headers[HEADER]["traceparent"] = traceparent
