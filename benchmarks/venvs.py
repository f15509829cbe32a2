"""The peers' environments, and ours on the newest Python. They cannot share ours: arq, SAQ and taskiq-redis ask for
versions of redis that exclude each other, and some need a newer Python. Made on first use, and made again when the
lists change."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from infra import pythons

from benchmarks.entrants import ROOT, VENVS, newest_python
from benchmarks.plan import say

LISTS = {"newest": "peers.txt", "redis5": "peers-redis5.txt", "newest-python": "peers-newest-python.txt"}


def prepare() -> list[str]:
    """Install what is missing. Returns what could not be installed; its peers are then left out."""
    failed = []
    VENVS.mkdir(exist_ok=True)
    (VENVS / ".gitignore").write_text("*\n")
    version, newest = newest_python()
    for name, file_name in LISTS.items():
        folder, source = VENVS / name, ROOT / "benchmarks" / "peers" / file_name
        python = newest if name == "newest-python" else Path(sys.executable)
        done, stamp = folder / file_name, f"# {python}\n{source.read_text()}"
        if done.exists() and done.read_text() == stamp:
            continue
        say(f"installing the peers of {file_name} into {folder}")
        try:
            subprocess.run([python, "-m", "venv", "--clear", folder], check=True, capture_output=True)
            pip = [folder / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
            subprocess.run([*pip, "-r", source], check=True, capture_output=True, text=True)
        except subprocess.CalledProcessError as error:
            failed.append(f"{file_name} on {python}: {str(error.stderr).strip().splitlines()[-1:]}")
            shutil.rmtree(folder, ignore_errors=True)
            continue
        done.write_text(stamp)
    if newest == Path(sys.executable):
        failed.append(f"Penstock on a newer Python: {version} is the newest here")
    else:
        try:
            pythons.environment(version, newest)
        except subprocess.CalledProcessError as error:
            failed.append(f"Penstock on Python {version}: {error}")
    return failed


def versions(python: Path) -> dict[str, str]:
    """The versions of the packages installed for a Python, for the record."""
    code = "import json; from importlib.metadata import distributions as d;"
    code += "print(json.dumps({x.metadata['Name']: x.version for x in d()}))"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    packages: dict[str, str] = json.loads(done.stdout)
    return packages
