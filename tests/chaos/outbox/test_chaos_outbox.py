"""A small round of the outbox. `make chaos` runs one of five thousand jobs."""

from __future__ import annotations

from pathlib import Path

import pytest
from chaos_outbox import one_outbox_round
from support.ledgers import temporary_database
from support.servers.shared import POSTGRES_URL, need

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_the_outbox_sends_exactly_the_committed_jobs_whatever_is_killed(tmp_path: Path) -> None:
    need("PostgreSQL")
    with temporary_database(POSTGRES_URL) as ledger, temporary_database(POSTGRES_URL) as shop:
        report = one_outbox_round(7, 600, tmp_path, ledger_url=ledger, shop_url=shop, seconds=3)
    print("\n".join(report.lines()))
    assert report.faults == []
    total = report.total
    assert total.committed >= 300
    assert total.ran == total.committed
    assert total.rolled_back > 0
    assert report.ordered > 0
    assert all(report.broken[what] > 0 for what in ("kill_backend", "kill_dispatcher", "kill_redis"))
