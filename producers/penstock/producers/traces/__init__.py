"""The trace that jobs enqueued here belong to, as a W3C `traceparent`, and the spans of what is sent.

Nothing here imports OpenTelemetry unless the process has loaded it.
"""

from __future__ import annotations

from penstock.producers.traces.current import current_traceparent, follow, inherit, traced

__all__ = ["current_traceparent", "follow", "inherit", "traced"]
