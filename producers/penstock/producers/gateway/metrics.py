"""The gateway's own metrics, for Prometheus: requests, jobs, streams."""

from __future__ import annotations

import time
from functools import cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """Metrics of one app. They have a registry of their own, since a process may have several apps.

    Attributes:
        answered: a method, a route and a status → where to record the seconds.
        sent: a kind → its counter.
        refused: problems by their names.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        requests = Histogram(
            "penstock_gateway_request_seconds",
            "Requests that were answered, and how long that took; of streams, until they began.",
            ("method", "route", "status"),
            buckets=_BUCKETS,
            registry=self.registry,
        )
        jobs = Counter("penstock_gateway_jobs", "Jobs that were taken and sent.", ("kind",), registry=self.registry)
        self.refused = Counter(
            "penstock_gateway_jobs_refused", "Jobs that were not.", ("problem",), registry=self.registry
        )
        # `labels` checks and locks with each call. These keep no more than the metrics do.
        self.answered, self.sent = cache(requests.labels), cache(jobs.labels)
        self.streams = Gauge("penstock_gateway_streams", "Jobs that clients follow now.", registry=self.registry)


class RequestTimer:
    """ASGI middleware that counts requests by route and status."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()

        async def send_measured(message: Message) -> None:
            if message["type"] == "http.response.start":
                # The route and not the path, which has ids: each would make a series.
                route = getattr(scope.get("route"), "path", "none")
                labels = (scope["method"] if route != "none" else "", route, str(message["status"]))
                metrics: Metrics = scope["app"].state.deps.metrics
                metrics.answered(*labels).observe(time.perf_counter() - started)
            await send(message)

        await self._app(scope, receive, send_measured)
