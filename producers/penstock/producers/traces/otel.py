"""OpenTelemetry's API as the rest uses it. Import it only where `opentelemetry.trace` is loaded."""

from __future__ import annotations

import random
from functools import partial

from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.trace import INVALID_SPAN_CONTEXT, NonRecordingSpan, SpanContext, TraceFlags
from opentelemetry.trace import ProxyTracerProvider as NoProvider

from penstock.producers.traces.request import inherited_traceparent
from penstock.schemas.wire.traceparent import read_traceparent

NOWHERE = Context()
"""A context without a span: what begins in it begins a trace."""


class Tracing:
    """The tracer of a provider, and what its sampler is known to refuse.

    To ask the sampler for one span costs as much as a short job. Most samplers follow the decision of the parent,
    and say so in their description.
    """

    def __init__(self, provider: trace.TracerProvider) -> None:
        self.provider = provider
        self.tracer = provider.get_tracer("penstock")
        sampler = getattr(provider, "sampler", None)
        description = "" if sampler is None else str(sampler.get_description())
        never = description == "AlwaysOffSampler"
        self._no_roots = never or description.startswith("ParentBased{root:AlwaysOffSampler,")
        self._none = never
        self._follows = all(f"{parent}ParentNotSampled:AlwaysOffSampler" in description for parent in _PARENTS)

    def refuses(self, traceparent: str | None) -> bool:
        """Whether a span with this parent is certainly not sampled; None: it has no parent."""
        if not traceparent or len(traceparent) != _LENGTH:
            return self._no_roots
        return self._none or (self._follows and traceparent[-1] in _UNSAMPLED)


_PARENTS = ("remote", "local")
_LENGTH = 55
"""Characters of a traceparent of version 00. A text of another length is none."""
_UNSAMPLED = "02468ace"
"""Last digits of the flags of what was not sampled."""
_found: Tracing | None = None


def find_tracing() -> Tracing | None:
    """The tracer of this process; None: it has no provider of spans."""
    global _found
    provider = trace.get_tracer_provider()
    if _found is None or _found.provider is not provider:
        if isinstance(provider, NoProvider):
            return None
        _found = Tracing(provider)
    return _found


def span_context(traceparent: str | None) -> SpanContext:
    """Traceparent → context of the span that it names; one that is malformed, or None, is invalid."""
    value = read_traceparent(traceparent)
    if value is None:
        return INVALID_SPAN_CONTEXT
    return SpanContext(int(value[3:35], 16), int(value[36:52], 16), True, TraceFlags(int(value[53:55], 16)))


def within(traceparent: str | None) -> Context:
    """A context in which the span that a traceparent names is the current one; None: no span is."""
    parent = span_context(traceparent)
    return trace.set_span_in_context(NonRecordingSpan(parent), NOWHERE) if parent.is_valid else NOWHERE


def traceparent_of(span: trace.Span) -> str | None:
    """Traceparent that names a span; None: it has no valid context."""
    parent = span.get_span_context()
    if not parent.is_valid:
        return None
    return f"00-{parent.trace_id:032x}-{parent.span_id:016x}-{parent.trace_flags:02x}"


def unsampled_root() -> str:
    """A new trace that is not sampled: who continues it records nothing either."""
    return f"00-{random.getrandbits(128) or 1:032x}-{random.getrandbits(64) or 1:016x}-00"


class _Inherited(NonRecordingSpan):
    """The span that this context has inherited. One object serves all jobs: it reads the name when it is asked."""

    def __init__(self) -> None:
        super().__init__(INVALID_SPAN_CONTEXT)

    def get_span_context(self) -> SpanContext:
        return span_context(inherited_traceparent())


attach_inherited = partial(context.attach, trace.set_span_in_context(_Inherited(), NOWHERE))
"""Make the inherited span the current one, for the rest of this context."""
