from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from workers.executor.bench import Bench, open_bench

from penstock.config.settings import Settings


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A worker with metrics; its port is served only in a process of an engine."""
    settings = Settings(
        database_url=f"sqlite:///{tmp_path}/ledger.db",
        lease_seconds=2,
        grace_seconds=5,
        unknown_kind_grace=timedelta(),
        http_port=1,
    )
    with open_bench(settings) as bench:
        yield bench
