"""Build the wheel, install it into a fresh virtual environment, and see that it is whole without the source folders."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
IMPORTS = """
import importlib, importlib.metadata, pathlib, sys
import penstock.config, penstock.schemas, penstock.ledger, penstock.producers, penstock.workers, pytest_penstock
for module in (penstock.schemas, penstock.ledger, penstock.producers, penstock.workers):
    assert pathlib.Path(module.__file__).is_relative_to(sys.prefix), module.__file__
assert penstock.schemas.__version__ == importlib.metadata.version("penstock")
for entry in importlib.metadata.distribution("penstock").entry_points:
    entry.load()
"""


def run(*command: str | Path) -> None:
    """Run a command outside the repository; its output shows only if it fails."""
    done = subprocess.run(
        [str(word) for word in command], cwd=tempfile.gettempdir(), capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")


def main() -> None:
    """Exit code 1, and the reason, if the wheel lacks a file, cannot be imported, or its command does not start."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        run(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", folder, ROOT)
        (wheel,) = folder.glob("*.whl")
        packed = set(zipfile.ZipFile(wheel).namelist())
        listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        sources = [name.partition("/")[2] for name in listed.splitlines() if name.split("/")[1:2] == ["penstock"]]
        if missing := sorted(set(sources) - packed):
            sys.exit(f"{wheel.name} lacks {', '.join(missing)}")
        run(sys.executable, "-m", "venv", folder / "venv")
        python = folder / "venv/bin/python"
        run(python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps", "--no-index", wheel)
        # The dependencies are those of the environment that runs this; a path file reads no other path file, so the
        # editable install in there stays out.
        (site,) = (folder / "venv/lib").glob("python*/site-packages")
        (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
        run(python, "-I", "-W", "error", "-c", IMPORTS)
        run(folder / "venv/bin/penstock", "--help")
        print(f"{wheel.name}: {len(sources)} files, imported from a fresh environment; penstock --help runs")


if __name__ == "__main__":
    main()
