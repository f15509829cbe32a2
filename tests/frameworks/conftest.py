"""For the tests of web frameworks."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent))


def wait_until(condition: Callable[[], Any], limit_seconds: float = 60.0) -> Any:
    """Poll until a condition is true, and return what it gave."""
    deadline = time.monotonic() + limit_seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not so after {limit_seconds:g} s"
        time.sleep(0.02)
    return value


@pytest.fixture
def poll() -> Callable[..., Any]:
    return wait_until
