"""CONTRIBUTING.md, the Makefile and the hooks of pre-commit say the same."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
HOOKS = [
    hook for repo in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"] for hook in repo["hooks"]
]


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_the_hooks_run_the_commands_of_make_check() -> None:
    environment = {
        name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")
    }
    command = ["make", "--dry-run", "--old-file", ".venv/.dev", "check"]
    printed = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    commands = [line.partition(" ||")[0] for line in printed.splitlines()]
    assert [hook["entry"] for hook in HOOKS] == commands
    assert commands


def test_the_hooks_need_no_remote_repository() -> None:
    text = (ROOT / ".pre-commit-config.yaml").read_text()
    assert "://" not in text
    assert re.findall(r"repo: (.+)", text) == ["local"]
    assert all(hook["language"] == "system" and not hook["pass_filenames"] for hook in HOOKS)


def test_pre_commit_accepts_the_configuration() -> None:
    command = [sys.executable, "-m", "pre_commit", "validate-config", ".pre-commit-config.yaml"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_contributing_names_every_verb_that_exists_and_no_other() -> None:
    verbs = re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = re.findall(r"^\| `make ([a-z-]+)", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    assert sorted(named) == sorted(verbs)
