"""Editors flag wrong declarations: mypy, with and without pydantic's plugin, and pyright."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from penstock.producers.enqueue.options import OPTION_NAMES
from penstock.schemas.jobs.job import KEYWORDS

SAMPLES = Path(__file__).with_name("samples")
ROOT = Path(__file__).parents[3]
SOURCES = [str(ROOT / name) for name in ("schemas", "producers", "workers", "config")]
PLAIN = (
    "[mypy]\nstrict = true\nnamespace_packages = true\nexplicit_package_bases = true\nignore_missing_imports = true\n"
)

Lines = set[int]


def run_mypy(*options: str) -> dict[str, Lines]:
    command = [sys.executable, "-m", "mypy", "--no-error-summary", "--hide-error-context", *options]
    environment = os.environ | {"MYPYPATH": os.pathsep.join(SOURCES)}
    files = [str(SAMPLES / "right.py"), str(SAMPLES / "wrong.py")]
    ran = subprocess.run([*command, *files], capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    errors: dict[str, Lines] = {"right.py": set(), "wrong.py": set()}
    for file, line in re.findall(r"^\S*?(\w+\.py):(\d+): error: ", ran.stdout, re.MULTILINE):
        errors[file].add(int(line))
    assert ran.returncode == 1, ran.stdout + ran.stderr
    return errors


def run_pyright(folder: Path) -> dict[str, Lines]:
    """Microsoft's own where it is installed; else the same in a wheel, with pyright's own rules."""
    program = shutil.which("pyright") or shutil.which("basedpyright", path=Path(sys.executable).parent)
    if program is None:
        pytest.skip("pyright is not installed; pip install basedpyright")
    (folder / "pyrightconfig.json").write_text('{"typeCheckingMode": "standard"}')
    command = [
        program,
        "--outputjson",
        "--pythonpath",
        sys.executable,
        str(SAMPLES / "right.py"),
        str(SAMPLES / "wrong.py"),
    ]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    errors: dict[str, Lines] = {"right.py": set(), "wrong.py": set()}
    for item in json.loads(ran.stdout)["generalDiagnostics"]:
        if item["severity"] == "error":
            errors[Path(item["file"]).name].add(item["range"]["start"]["line"] + 1)
    return errors


def wrong_lines() -> Lines:
    lines = (SAMPLES / "wrong.py").read_text().splitlines()
    return {number for number, line in enumerate(lines, start=1) if line.endswith("# wrong")}


def test_the_samples_have_a_wrong_value_of_every_class_keyword_and_option() -> None:
    wrong = [line for line in (SAMPLES / "wrong.py").read_text().splitlines() if line.endswith("# wrong")]
    for name in KEYWORDS:
        assert any(line.startswith("class ") and f" {name}=" in line for line in wrong), name
    for name in OPTION_NAMES:
        assert any("producer.enqueue(" in line and f" {name}=" in line for line in wrong), name


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("plugin", [False, True], ids=["plain", "with pydantic's plugin"])
def test_mypy_flags_wrong_declarations_and_no_right_ones(plugin: bool, tmp_path: Path) -> None:
    if plugin:  # as in pyproject.toml: what `make check` has read is in the cache
        errors = run_mypy()
    else:
        (tmp_path / "mypy.ini").write_text(PLAIN)
        errors = run_mypy("--config-file", str(tmp_path / "mypy.ini"), "--cache-dir", str(tmp_path / "cache"))
    assert errors["right.py"] == set()
    assert errors["wrong.py"] == wrong_lines()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_pyright_flags_wrong_declarations_and_no_right_ones(tmp_path: Path) -> None:
    errors = run_pyright(tmp_path)
    assert errors["right.py"] == set()
    assert errors["wrong.py"] == wrong_lines()
