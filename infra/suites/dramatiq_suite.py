"""Runs Dramatiq's own tests of actors with a broker and a worker of Penstock's.

    make dramatiq-suite                                     # over a Redis of its own
    make dramatiq-suite ARGS="--broker-url amqp://…"        # other words go to pytest

The tests come from the sdist of the installed version on the package index, and are kept in ~/.cache/penstock. That
sdist lacks their fixtures; those here are `dramatiq_fixtures.py`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
from argparse import ArgumentParser
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
FILES = ("actors", "callbacks", "composition", "encoders", "generic_actors", "results")


def main() -> int:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--broker-url", default="", help="another broker than a Redis that is started for the run")
    options, words = parser.parse_known_args()
    tests = fetch()
    paths = os.pathsep.join([str(HERE), str(HERE.parents[1] / "tests")])
    environment = os.environ | {"PYTHONPATH": paths, "SUITE_BROKER_URL": options.broker_url}
    pytest = [sys.executable, "-m", "pytest", "-c", os.devnull, "--rootdir", str(tests.parent), "-q", "-rfEs"]
    files = [str(tests / f"test_{name}.py") for name in FILES]
    plugins = ["-p", "dramatiq_fixtures", "-p", "no:cacheprovider"]
    return subprocess.run([*pytest, *plugins, *files, *words], env=environment, cwd=tests.parent).returncode


def fetch() -> Path:
    """The folder of the tests, downloaded if this version's are not there yet."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "penstock"
    release = f"dramatiq-{version('dramatiq')}"
    tests = cache / release / "tests"
    if not (tests / "common.py").exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            package = release.replace("-", "==")
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
            subprocess.run([*pip, "--dest", folder, package], check=True)
            with tarfile.open(next(Path(folder).glob("*.tar.gz"))) as archive:
                members = [each for each in archive.getmembers() if each.name.startswith(f"{release}/tests/")]
                archive.extractall(cache, members, filter="data")
        (tests / "__init__.py").touch()
        (tests / "common.py").write_text("from dramatiq_fixtures import *  # noqa: F403\n")
    return tests


if __name__ == "__main__":
    sys.exit(main())
