"""The gateway's metrics, for Prometheus: requests, jobs, streams, and the sizes of the outboxes."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress

import sqlalchemy as sa
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from penstock.config.errors import LedgerUnavailable
from penstock.ledger.queries.outbox_backlog import backlog
from penstock.ledger.sql.database import Database
from penstock.ledger.workflows.commands import count_resting

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """Metrics of one app. They have a registry of their own, since a process may have several apps."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Histogram(
            "penstock_gateway_request_seconds",
            "Requests that were answered, and how long that took; of streams, until they began.",
            ("method", "route", "status"),
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self.jobs = Counter(
            "penstock_gateway_jobs", "Jobs that were taken and sent.", ("kind",), registry=self.registry
        )
        self.refused = Counter(
            "penstock_gateway_jobs_refused", "Jobs that were not.", ("problem",), registry=self.registry
        )
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
                metrics.requests.labels(*labels).observe(time.perf_counter() - started)
            await send(message)

        await self._app(scope, receive, send_measured)


class RestingWorkflows(Collector):
    """Number of workflows that rest, by kind: no dispatcher has the code that they began with."""

    def __init__(self, ledger: Database) -> None:
        self._ledger = ledger

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Name the metric; without this method, registering would read the ledger."""
        return (self._family(),)

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Count them; nothing while the ledger is unavailable."""
        family = self._family()
        with suppress(LedgerUnavailable):
            for kind, count in count_resting(self._ledger).items():
                family.add_metric([kind], count)
        return (family,)

    def _family(self) -> GaugeMetricFamily:
        text = "Workflows whose code was changed, which wait for a dispatcher with the code they began with."
        return GaugeMetricFamily("penstock_workflows_resting", text, labels=("kind",))


class OutboxBacklogs(Collector):
    """Size and lag of the outbox in the ledger's database, and of those in web backends' databases.

    They are read whenever Prometheus asks, which blocks.

    Arguments:
        urls: the databases of web backends.
    """

    def __init__(self, ledger: Database, urls: Iterable[str]) -> None:
        self._ledger = ledger
        self._others = {url: Database(url, pool_size=1, private=False) for url in urls if url != ledger.url}

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Name the metrics; without this method, registering would read the outboxes."""
        return _families()

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Read each outbox; one whose database is unavailable is left out."""
        jobs, lag = _families()
        for database in (self._ledger, *self._others.values()):
            try:
                size = backlog(database)
            except LedgerUnavailable:
                continue
            name = "ledger" if database is self._ledger else _name(database.url)
            jobs.add_metric([name], size.jobs)
            lag.add_metric([name], size.lag.total_seconds())
        return jobs, lag

    def close(self) -> None:
        for database in self._others.values():
            database.close()


def _name(url: str) -> str:
    """Host and database, without the user: metrics are read by many."""
    parsed = sa.make_url(url)
    return f"{parsed.host or ''}/{(parsed.database or '').lstrip('/')}"


def _families() -> tuple[GaugeMetricFamily, GaugeMetricFamily]:
    return (
        GaugeMetricFamily("penstock_outbox_jobs", "Jobs that are committed and not sent.", labels=("outbox",)),
        GaugeMetricFamily("penstock_outbox_lag_seconds", "How long the first of them waits.", labels=("outbox",)),
    )
