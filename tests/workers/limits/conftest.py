from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent))

from limit_site import Site
from workers.limits.clocked_store import Clocked


@pytest.fixture
def store(redis_url: str, prefix: str) -> Iterator[Clocked]:
    store = Clocked(redis_url, prefix)
    store.open()
    yield store
    store.close()


@pytest.fixture
def open_site(tmp_path: Path, redis_url: str, prefix: str) -> Iterator[Callable[..., Site]]:
    """Makes a site, which ends with the test."""
    opened: list[Site] = []

    def make(**settings: Any) -> Site:
        opened.append(Site(tmp_path, redis_url, prefix, **settings))
        return opened[-1]

    yield make
    for site in opened:
        site.stop()


@pytest.fixture
def site(open_site: Callable[..., Site]) -> Site:
    """A dispatcher and two workers."""
    return open_site().start()
