"""Spans that were recorded in a test's own process, by the real SDK, and what is asked of them."""

from __future__ import annotations

import json
from collections.abc import Sequence

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import Sampler


class Recorded:
    """A provider with its exporter in memory."""

    def __init__(self, sampler: Sampler) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(sampler=sampler)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.provider.get_tracer("application")

    @property
    def spans(self) -> Sequence[ReadableSpan]:
        return self.exporter.get_finished_spans()

    def named(self, name: str, **attributes: object) -> list[ReadableSpan]:
        expected = {f"penstock.{key}": value for key, value in attributes.items()}
        return [
            span for span in self.spans if span.name == name and expected.items() <= dict(span.attributes or {}).items()
        ]

    def sent(self, **attributes: object) -> list[ReadableSpan]:
        """Spans of producers."""
        return [span for span in self.named("send traces", **attributes) if span.kind == trace.SpanKind.PRODUCER]

    def text(self) -> str:
        return "\n".join(json.dumps(json.loads(span.to_json())) for span in self.spans)


def id_of(span: ReadableSpan | trace.Span) -> str:
    return f"{span.get_span_context().span_id:016x}"  # type: ignore[union-attr]


def parent_of(span: ReadableSpan) -> str | None:
    return None if span.parent is None else f"{span.parent.span_id:016x}"


def assert_one_tree(spans: Sequence[ReadableSpan]) -> ReadableSpan:
    """The root of the tree that all these spans are."""
    assert len({span.get_span_context().trace_id for span in spans}) == 1  # type: ignore[union-attr]
    by_id = {id_of(span): span for span in spans}
    roots = [span for span in spans if span.parent is None]
    assert len(roots) == 1, [span.name for span in roots]
    orphans = [span.name for span in spans if span.parent is not None and parent_of(span) not in by_id]
    assert not orphans, f"their parents are not there: {orphans}"
    return roots[0]
