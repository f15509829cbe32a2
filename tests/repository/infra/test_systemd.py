"""`infra/systemd`."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from repository.infra.files import UNITS, unit_setting


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_stops_by_sigterm_and_comes_back(unit: Path) -> None:
    assert unit_setting(unit, "KillSignal") == "SIGTERM"
    assert unit_setting(unit, "KillMode") == "mixed"
    assert unit_setting(unit, "Restart") == "always"
    assert unit_setting(unit, "User") not in ("", "root")
    assert not re.search(r"\$\{PENSTOCK_", unit_setting(unit, "ExecStart"))


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_what_a_unit_writes_is_for_its_user_alone(unit: Path) -> None:
    assert unit_setting(unit, "UMask") == "0077"
    assert unit_setting(unit, "StateDirectoryMode") == "0700"


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_finds_no_fault_in(unit: Path, tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text().replace("/opt/penstock/bin/penstock", "/bin/true"))
    result = subprocess.run([analyze, "verify", str(copy)], capture_output=True, text=True)
    about_it = [line for line in result.stderr.splitlines() if unit.name in line]
    assert (result.returncode, about_it) == (0, []), result.stderr
