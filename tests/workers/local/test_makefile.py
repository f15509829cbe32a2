"""The verbs of the Makefile, where they can be tried without making a virtual environment."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
VERBS = (
    "help",
    "demo",
    "up",
    "test",
    "test-pythons",
    "check",
    "check-wheel",
    "fix",
    "states",
    "pictures",
    "bench",
    "chaos",
    "fuzz",
    "django-tasks-suite",
    "dramatiq-suite",
    "celery-suite",
    "sbom",
    "release",
    "clean",
)
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def make(*words: str, folder: Path = ROOT, **changes: str) -> subprocess.CompletedProcess[str]:
    # Under `make test` this would be a make within a make, which says so.
    outer = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")
    environment = {name: value for name, value in os.environ.items() if name not in outer} | changes
    return subprocess.run(["make", *words], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A folder with the Makefile and the pins, and no virtual environment."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def test_make_without_a_verb_lists_each_with_a_line_of_help() -> None:
    listed = dict(line.removeprefix("make ").split(maxsplit=1) for line in make().stdout.splitlines())
    assert tuple(listed) == VERBS
    assert all(listed.values())


def test_a_python_that_is_too_old_is_refused_with_what_to_do(copied: Path) -> None:
    old = copied / "python3.9"
    old.write_text('#!/bin/sh\ncase "$1" in -V) echo Python 3.9.2;; *) exit 1;; esac\n')
    old.chmod(0o755)
    refused = make(f"PYTHON={old}", "test", folder=copied)
    assert refused.returncode != 0
    assert "needs Python 3.11 or later" in refused.stderr
    assert "Python 3.9.2; name another: make PYTHON=" in refused.stderr
    assert not (copied / ".venv").exists()


def test_tests_keep_compiled_modules_where_the_environment_says_otherwise(copied: Path) -> None:
    programs = copied / ".venv/bin"
    programs.mkdir(parents=True)
    for name in ("python", "pytest"):
        (programs / name).write_text("#!/bin/sh\nenv\n")
        (programs / name).chmod(0o755)
    (copied / ".venv/.dev").touch()
    tests = make("test", folder=copied, PYTHONDONTWRITEBYTECODE="1", KEPT="1")
    lines = tests.stdout.splitlines()
    assert "KEPT=1" in lines, tests.stderr
    assert "PYTHONDONTWRITEBYTECODE=1" not in lines


def test_constraints_are_bare_pins() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert lines == sorted(lines, key=lambda line: line.partition("==")[0])
    for line in lines:
        name, _, version = line.partition("==")
        assert name, line
        assert version, line
        assert not set("/@ ;") & set(line), line
        assert name not in ("penstock", "pip", "setuptools")
