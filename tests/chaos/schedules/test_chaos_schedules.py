"""A small round of schedules. `make chaos` runs one of 2,000 firings."""

from __future__ import annotations

from pathlib import Path

import pytest
from chaos_schedules import schedule_round
from support.ledgers import temporary_database
from support.servers.shared import POSTGRES_URL, need

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_schedules_fire_each_time_once_while_dispatchers_are_killed(
    redis_url: str, prefix: str, tmp_path: Path
) -> None:
    need("PostgreSQL")
    with temporary_database(POSTGRES_URL) as url:
        report = schedule_round(tmp_path, 7, count=300, database_url=url, broker_url=redis_url, prefix=prefix, kills=3)
    print("\n".join(report.lines()))
    assert report.faults == []
    assert report.firings >= 300
    assert report.kills > 0
