from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from workers.executor.bench import Bench, open_bench

from penstock.config.settings import Settings


@pytest.fixture
def make_bench(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    """`make_bench(**settings)`: a bench with one worker, whose pool has two processes."""
    url = f"sqlite:///{tmp_path}/ledger.db"
    fixed: dict[str, Any] = {"database_url": url, "lease_seconds": 2, "grace_seconds": 5}
    fixed |= {"unknown_kind_grace": timedelta(), "pool": "processes"}
    with open_bench(Settings(**fixed)) as bench:

        def make(**settings: Any) -> Bench:
            bench.settings = bench.settings.model_copy(update=settings)
            bench.worker(concurrency=2)
            return bench

        yield make


@pytest.fixture
def pool_bench(make_bench: Callable[..., Bench]) -> Bench:
    return make_bench()
