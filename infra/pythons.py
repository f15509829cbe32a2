"""Run a shorter selection of the tests on the other supported Pythons that this machine has.

make test-pythons                 # each in a virtual environment of its own: .venv-3.12, .venv-3.13
make test-pythons ARGS=--quick    # the part that .ci/run runs
make test-pythons ARGS=--list     # only says which Pythons there are
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SUPPORTED = ("3.11", "3.12", "3.13")
"""As in the classifiers of pyproject.toml."""
SELECTION = (
    "tests/schemas",
    "tests/config",
    "tests/workers/executor",
    "tests/ledger",
    "tests/producers/enqueue",
    "tests/producers/test_outbox.py",
    "tests/workers/workflows/test_running.py",
    "tests/workers/workflows/test_testing_kit.py",
    "tests/test_house.py",
)
"""What depends on the Python most: annotations, asyncio, sqlite3, subprocesses. SQLite is the only database."""
QUICK = (
    "tests/schemas",
    "tests/config",
    "tests/workers/executor/attempt",
    "tests/ledger/transitions/claims",
    "tests/producers/enqueue",
    "tests/workers/workflows/test_testing_kit.py",
)
"""Of these, the shortest that loads every room."""
WITHOUT_SERVERS = ("-m", "not rabbitmq and not postgres and not mariadb and not slow", "-k", "not rabbitmq")
"""By marks, and by names: the pairs of engine and broker have no mark."""
INSTALLED = {
    "PYENV_ROOT": (".pyenv", "versions/{version}*/bin/python"),
    "ASDF_DATA_DIR": (".asdf", "installs/python/{version}*/bin/python"),
    "MISE_DATA_DIR": (".local/share/mise", "installs/python/{version}*/bin/python"),
    "UV_PYTHON_INSTALL_DIR": (".local/share/uv/python", "cpython-{version}*/bin/python3"),
    "CONDA_ROOT": ("miniconda3", "envs/*/bin/python{version}"),
    "CONDA_PREFIX": ("miniforge3", "bin/python{version}"),
}
"""Environment variable → (its default below the home folder, pattern below that)."""
SYSTEM = (Path("/usr/bin"), Path("/usr/local/bin"), Path("/opt/conda/bin"))


def candidates(version: str) -> Iterator[Path]:
    """Where a Python of this version may be; not all are there, and some may be of another version."""
    for variable, (default, pattern) in INSTALLED.items():
        folder = Path(os.environ.get(variable) or Path.home() / default)
        yield from sorted(folder.glob(pattern.format(version=version)), reverse=True)
    for folder in SYSTEM:
        yield folder / f"python{version}"
    if path := shutil.which(f"python{version}"):
        yield Path(path)


def find(version: str) -> Path | None:
    """A Python of this version that can make virtual environments."""
    code = "import ensurepip, sqlite3, ssl, sys, venv; print('{}.{}'.format(*sys.version_info))"
    for python in candidates(version):
        if python.exists():
            done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
            if done.stdout.strip() == version:
                return python
    return None


def environment(version: str, python: Path) -> Path:
    """The virtual environment of a version, up to date with pyproject.toml and constraints.txt."""
    folder = ROOT / f".venv-{version}"
    stamp = folder / ".dev"
    pins = [ROOT / "pyproject.toml", ROOT / "constraints.txt"]
    if stamp.exists() and all(stamp.stat().st_mtime > pin.stat().st_mtime for pin in pins):
        return folder
    print(f"installing Penstock and what its tests need into {folder.name}", flush=True)
    subprocess.run([python, "-m", "venv", folder], check=True)
    pip = [folder / "bin/python", "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    subprocess.run([*pip, "-c", "constraints.txt", "-e", ".[test]"], cwd=ROOT, check=True)
    stamp.touch()
    return folder


def main() -> int:
    """Exit code 0 if the tests passed on each Python that is there, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="only say which Pythons there are")
    parser.add_argument("--quick", action="store_true", help="a part of the selection")
    parser.add_argument("--jobs", default="6", help="tests at a time")
    options = parser.parse_args()
    pythons = {}
    for version in SUPPORTED:
        if version == "{}.{}".format(*sys.version_info):
            continue  # `make test` runs all tests on this one
        python = find(version)
        print(f"Python {version}: {python or 'not found; its tests are skipped'}", flush=True)
        if python is not None and not options.list:
            pythons[version] = python
    with ThreadPoolExecutor() as pool:  # pip works on one core
        folders = list(pool.map(environment, pythons, pythons.values()))
    failed = []
    for version, folder in zip(pythons, folders, strict=True):
        print(f"Python {version}", flush=True)
        pytest = [folder / "bin/pytest", "-q", "-n", options.jobs, *WITHOUT_SERVERS]
        if subprocess.run([*pytest, *(QUICK if options.quick else SELECTION)], cwd=ROOT, check=False).returncode != 0:
            failed.append(version)
    if failed:
        print(f"tests failed on Python {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
