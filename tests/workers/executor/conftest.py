from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from workers.executor.bench import Bench, open_bench

from penstock.config.settings import Settings


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    url = f"sqlite:///{tmp_path}/ledger.db"
    with open_bench(
        Settings(database_url=url, lease_seconds=10, grace_seconds=5, unknown_kind_grace=timedelta())
    ) as bench:
        yield bench
