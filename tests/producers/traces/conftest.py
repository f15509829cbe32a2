from __future__ import annotations

from collections.abc import Iterator

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased, Sampler
from producers.traces.recorded import Recorded
from workers.executor.conftest import bench as bench


@pytest.fixture
def sampler() -> Sampler:
    return ParentBased(ALWAYS_ON)


@pytest.fixture
def recorded(sampler: Sampler, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorded]:
    """The provider of this process for one test. The API lets a process set only one."""
    recorded = Recorded(sampler)
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", recorded.provider)
    yield recorded
    recorded.provider.shutdown()
