"""The readers of strangers' input, under the same generated input each time; `make fuzz` goes on for longer."""

from __future__ import annotations

import pytest
from fuzz.targets import TARGETS, Target


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_generated_input_is_read_or_refused(target: Target) -> None:
    target.fuzz(examples=100)
