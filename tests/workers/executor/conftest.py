from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from workers.executor.bench import Bench, gate, seen

from penstock.config.settings import Settings


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    seen.clear()
    gate.clear()
    url = f"sqlite:///{tmp_path}/ledger.db"
    bench = Bench(Settings(database_url=url, lease_seconds=2, grace_seconds=5, unknown_kind_grace=timedelta()))
    yield bench
    gate.set()
    for worker in bench.workers:
        worker.stop()
    bench.producer.close()
    bench.database.close()
