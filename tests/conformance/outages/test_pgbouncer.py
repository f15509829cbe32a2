"""Thousands of jobs through PgBouncer in transaction mode, over four connections to PostgreSQL."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.ledgers import temporary_database
from support.polling import until
from support.servers.databases import PgBouncer
from support.servers.shared import POSTGRES_URL, need
from support.stack import PAIRS, lines
from test_outages import Site, make_site, marks

# pytest finds them by their names.
from test_outages import broker_url as broker_url  # isort: skip
from test_outages import running as running  # isort: skip

JOBS = 5000

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("pair", [PAIRS[0], PAIRS[3]], ids="-".join)
def test_jobs_behind_pgbouncer_all_succeed_also_when_it_is_restarted(
    pair: tuple[str, str], broker_url: str, tmp_path: Path, running: list[Site]
) -> None:
    need("PostgreSQL")
    file = tmp_path / "file"
    with temporary_database(POSTGRES_URL) as url:
        bouncer = PgBouncer(url, pool_size=4)
        try:
            bouncer.start()
            site = make_site(pair, broker_url, tmp_path, running, database_url=bouncer.url)
            site.start_worker(concurrency=100)
            site.producer.enqueue_many(marks(file, JOBS))
            until(lambda: len(lines(file)) > JOBS // 5, "some lines")
            bouncer.stop()
            bouncer.start()
            site.all_succeed(JOBS)
            assert sorted(lines(file), key=int) == [str(number) for number in range(JOBS)]
            site.stop()
        finally:
            bouncer.close()
