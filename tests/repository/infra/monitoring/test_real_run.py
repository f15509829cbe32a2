"""The board's queries and the rules against what a real installation serves, scraped by a real Prometheus."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
from repository.infra.monitoring.catalogue import ROOT

RUN = ROOT / "infra/pictures/run.py"
SOMETIMES_EMPTY = {
    "Dead letters: Dead letters",
    "Dead letters: {{queue}} {{kind}}",
    "Jobs that wait for a limit: {{limit}}",
    "Workflows that rest: {{kind}}",
    "Restarts of loops: {{instance}} {{loop}}",
    "Faults: {{fault}}",
}
"""Panels without a series while there is nothing to count."""
EXPECTED = {"PenstockJobsCrash"}
"""Alerts that a job which kills its worker may cause."""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_real_installation_has_data_for_each_panel_and_no_alert_without_a_reason() -> None:
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not installed")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")}
    command = [sys.executable, str(RUN), "--minutes", "1.5"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    missing, _, alerts = done.stdout.partition("alerts that fired:")
    assert set(filter(None, map(str.strip, missing.splitlines()[1:]))) - {"none"} <= SOMETIMES_EMPTY
    assert set(alerts.split()) - {"none"} <= EXPECTED
