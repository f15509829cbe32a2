from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from executor.bench import Bench, gate, seen

from penstock.config.settings import Settings


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    seen.clear()
    gate.clear()
    bench = Bench(Settings(database_url=f"sqlite:///{tmp_path}/ledger.db", lease_seconds=2, grace_seconds=5))
    yield bench
    gate.set()
    for worker in bench.workers:
        worker.stop()
    bench.producer.close()
    bench.database.close()
