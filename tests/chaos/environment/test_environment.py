"""Short rounds of some faults that no other test has under a load. `make chaos ARGS="--environment"` runs them all."""

from __future__ import annotations

from pathlib import Path

import pytest
from environment import QUICK, one_environment_round
from pairs import ServerMissing

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.mark.parametrize("fault", ["postgres-connection-limit", "no-descriptors"])
def test_a_fault_of_the_environment_loses_and_repeats_nothing_and_the_rate_comes_back(
    fault: str, tmp_path: Path
) -> None:
    try:
        row = one_environment_round("dramatiq-redis", fault, 7, QUICK, tmp_path)
    except ServerMissing as missing:
        pytest.skip(str(missing))
    print(" | ".join(row.cells()))
    assert row.faults == []
    assert row.jobs > 0
