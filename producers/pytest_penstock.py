"""The pytest plugin: the fixture `penstock`. Nothing of Penstock is loaded before a test asks for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from penstock.config.settings import Settings
    from penstock.producers.testing import Kit


@pytest.fixture
def penstock_settings() -> Settings | None:
    """Override it for settings of the tests' own; None: as `penstock.toml` and the environment say."""
    return None


@pytest.fixture
def penstock(penstock_settings: Settings | None) -> Iterator[Kit]:
    """Catches what the app enqueues, answers what is enqueued, and runs it: `penstock.producers.testing.Kit`."""
    from penstock.producers.testing import testing

    with testing(penstock_settings) as kit:
        yield kit
