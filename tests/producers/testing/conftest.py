from __future__ import annotations

import pytest

from penstock.config.settings import Settings


@pytest.fixture
def penstock_settings() -> Settings:
    return Settings()
