from __future__ import annotations

from collections.abc import Iterator

import pytest

from penstock.schemas import registry


@pytest.fixture(autouse=True)
def _forget_kinds() -> Iterator[None]:
    """Kinds that a test declares are unknown to the next one."""
    before = set(registry)
    yield
    for kind in set(registry) - before:
        registry.discard(kind)
