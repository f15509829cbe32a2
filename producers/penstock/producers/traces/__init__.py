"""The trace that jobs enqueued here belong to, as a W3C `traceparent`, and the spans of what is sent.

Nothing here imports OpenTelemetry unless the process has loaded it.
"""

from __future__ import annotations

from penstock.producers.traces.loaded import inherit
from penstock.producers.traces.request import current_traceparent, follow, traced

__all__ = ["current_traceparent", "follow", "inherit", "traced"]
