"""A small round of each pair. `make chaos` runs large ones, as many as one likes."""

from __future__ import annotations

from pathlib import Path

import pytest
from auditing import Report
from pairs import PAIRS, has_postgres, one_round
from support.servers.shared import need

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # a fault shows only when the wait for an end is over


@pytest.mark.parametrize("pair", PAIRS)
def test_jobs_are_not_lost_or_repeated_while_everything_breaks(pair: str, tmp_path: Path) -> None:
    if pair.endswith("rabbitmq"):
        need("RabbitMQ")
    report = one_round(pair, seed=7, count=200, seconds=4, folder=tmp_path)
    kept_every_promise(report)
    assert sum(report.broken.values()) > 0


def test_jobs_are_not_lost_or_repeated_while_the_database_is_killed(tmp_path: Path) -> None:
    if not has_postgres():
        pytest.skip("PostgreSQL is not installed: no server that may be killed")
    first = ["kill_database", "kill_worker"]
    report = one_round("dramatiq-redis", 7, count=200, seconds=4, folder=tmp_path, database="postgres", first=first)
    kept_every_promise(report)
    assert report.broken["kill_database"] > 0


def test_recorded_jobs_outlive_a_broker_that_lost_all_data(tmp_path: Path) -> None:
    report = one_round("celery-redis", 7, count=200, seconds=4, folder=tmp_path, first=["wipe_broker"], wipes=1)
    kept_every_promise(report)
    assert report.broken["wipe_broker"] > 0


def kept_every_promise(report: Report) -> None:
    print("\n".join(report.lines()))
    assert report.faults == []
    assert sum(line.ran for line in report.lines_of.values()) > 0
