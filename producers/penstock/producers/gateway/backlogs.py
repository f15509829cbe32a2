"""How much waits in the outboxes, for Prometheus: looked up whenever it asks."""

from __future__ import annotations

from collections.abc import Iterable

import sqlalchemy as sa
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from penstock.config.errors import LedgerUnavailable
from penstock.ledger.queries.outbox_backlog import backlog
from penstock.ledger.sql.database import Database


class Backlogs(Collector):
    """Of the outbox in the ledger's database, and those in databases of web backends. Collecting blocks.

    Arguments:
        urls: of the latter.
    """

    def __init__(self, ledger: Database, urls: Iterable[str]) -> None:
        self._ledger = ledger
        self._others = {url: Database(url, pool_size=1) for url in urls if url != ledger.url}

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Without it, registering would collect."""
        return _families()

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """One that cannot be asked is left out."""
        jobs, lag = _families()
        for database in (self._ledger, *self._others.values()):
            try:
                there = backlog(database)
            except LedgerUnavailable:
                continue
            name = "ledger" if database is self._ledger else _name(database.url)
            jobs.add_metric([name], there.jobs)
            lag.add_metric([name], there.lag.total_seconds())
        return jobs, lag

    def close(self) -> None:
        for database in self._others.values():
            database.close()


def _name(url: str) -> str:
    """Host and database; who has the user's name is nobody's business who reads metrics."""
    parsed = sa.make_url(url)
    return f"{parsed.host or ''}/{(parsed.database or '').lstrip('/')}"


def _families() -> tuple[GaugeMetricFamily, GaugeMetricFamily]:
    return (
        GaugeMetricFamily("penstock_outbox_jobs", "Jobs that are committed and not sent.", labels=("outbox",)),
        GaugeMetricFamily("penstock_outbox_lag_seconds", "How long the first of them waits.", labels=("outbox",)),
    )
