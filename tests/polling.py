"""Waiting for what must come about, however busy the machine is."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

LIMIT_SECONDS = 90.0
"""What no machine should need."""


def until(condition: Callable[[], T | None], what: str = "it", seconds: float = LIMIT_SECONDS) -> T:
    """Poll until the condition returns something true, and return that."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} did not come about within {seconds:g} s"
        time.sleep(0.01)
    return value
