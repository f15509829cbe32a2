"""A small round of workflows. `make chaos` runs one of ten thousand steps."""

from __future__ import annotations

from pathlib import Path

import pytest
from chaos_workflows import one_workflow_round

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_workflow_steps_happen_once_on_both_engines_whatever_is_killed(tmp_path: Path) -> None:
    report = one_workflow_round(7, 200, tmp_path, seconds=8)
    print("\n".join(report.lines()))
    assert report.faults == []
    assert report.steps == 200
    assert report.broken["kill_dispatcher"] > 0
