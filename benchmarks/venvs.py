"""The peers' environments. They cannot share ours: arq, SAQ and taskiq-redis ask for versions of redis that exclude
each other. Made on first use, and made again when the lists change."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.entrants import ROOT, VENVS
from benchmarks.plan import say

LISTS = {"newest": "peers.txt", "redis5": "peers-redis5.txt"}


def prepare() -> list[str]:
    """Install what is missing. Returns what could not be installed; its peers are then left out."""
    failed = []
    VENVS.mkdir(exist_ok=True)
    (VENVS / ".gitignore").write_text("*\n")
    for name, file_name in LISTS.items():
        folder, source = VENVS / name, ROOT / "benchmarks" / "peers" / file_name
        done = folder / file_name
        if done.exists() and done.read_text() == source.read_text():
            continue
        say(f"installing the peers of {file_name} into {folder}")
        try:
            subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True, capture_output=True)
            pip = [folder / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
            subprocess.run([*pip, "-r", source], check=True, capture_output=True, text=True)
        except subprocess.CalledProcessError as error:
            failed.append(f"{file_name}: {str(error.stderr).strip().splitlines()[-1:]}")
            shutil.rmtree(folder, ignore_errors=True)
            continue
        done.write_text(source.read_text())
    return failed


def versions(python: Path) -> dict[str, str]:
    """The versions of the packages installed for a Python, for the record."""
    code = "import json; from importlib.metadata import distributions as d;"
    code += "print(json.dumps({x.metadata['Name']: x.version for x in d()}))"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    packages: dict[str, str] = json.loads(done.stdout)
    return packages
