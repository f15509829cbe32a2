"""Django's own tests of its tasks, with Penstock's backend in the place of its two; on Django 6, and on the backport.

make django-tasks-suite

Django's sdist has them; its wheel has not, and neither has the backport. It is fetched once, at the version that is
installed, into a virtual environment with Django 6, `.venv-django-tasks`. `ImmediateBackend` becomes ours with a worker
that runs each task as it is enqueued, and `DummyBackend` ours without a worker. Tests that fail on Django's backends,
too, as the backport has some messages and methods of its own, do not count.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "infra"))

import pythons  # noqa: E402

VENV = ROOT / ".venv-django-tasks"
DJANGO = "django>=6,<7"
NEWEST = ("3.13", "3.12")
_MEMORY = "changes a result that DummyBackend keeps in memory; ours is in the database"
_LACKS = "checks that ImmediateBackend cannot do what ours does"
MISSES = {
    "DummyBackendTestCase.test_refresh_result": _MEMORY,
    "DummyBackendTestCase.test_refresh_result_async": _MEMORY,
    "ImmediateBackendTestCase.test_cannot_get_result": _LACKS,
    "ImmediateBackendTestCase.test_cannot_pass_run_after": _LACKS,
    "ImmediateBackendTestCase.test_cannot_refresh_result": _LACKS,
    "ImmediateBackendTestCase.test_throws_keyboard_interrupt": "KeyboardInterrupt of a task ends its job, not a worker",
}
"""Test → why it fails on ours."""
BACKPORT = (
    (r"django\.tasks", "django_tasks"),
    (r"InvalidTaskBackend\b", "InvalidTaskBackendError"),
    (r"InvalidTask\b", "InvalidTaskError"),
)
"""Names of Django's, as patterns, and those of the backport."""


def main() -> int:
    """Print how many tests pass, and which do not. Exit code 1 if one fails that is not in `MISSES`."""
    django6 = environment()
    if django6 is None:
        print(f"Django 6 needs Python {' or '.join(NEWEST)}, and none is here; see make test-pythons", file=sys.stderr)
        return 1
    version = output(django6, "-c", "import django; print(django.__version__)")
    backport = output(sys.executable, "-c", "import django_tasks; print(django_tasks.__version__)")
    archive = sdist(django6, version)
    good = True
    for name, python in ((f"Django {version}", django6), (f"django-tasks {backport}", Path(sys.executable))):
        ran, failed_on_theirs = run(python, archive, ours=False)
        _, failed = run(python, archive, ours=True)
        misses, count = sorted(failed - failed_on_theirs), ran - len(failed_on_theirs)
        print(f"{name}: of {count} tests that pass on its own backends, {count - len(misses)} pass on Penstock's")
        for test in misses:
            print(f"  {test}: {MISSES.get(test, 'not expected')}")
        good = good and MISSES.keys() >= set(misses)
    return int(not good)


def run(python: Path, archive: Path, *, ours: bool) -> tuple[int, set[str]]:
    """The number of tests, and those that failed. Ends the program if they did not run."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        unpack(archive, folder, ours=ours, backport=python != VENV / "bin/python")
        (folder / "on_penstock.py").write_text((Path(__file__).parent / "django_tasks_backends.py").read_text())
        command = [python, "-W", "ignore", "-m", "django", "test", "tasks", "--settings=on_penstock"]
        # The property `results`, which Django keeps in memory, reads the database, also for coroutines.
        variables = {"PYTHONPATH": str(folder), "SUITE_FOLDER": str(folder), "DJANGO_ALLOW_ASYNC_UNSAFE": "1"}
        done = subprocess.run(
            command, cwd=folder, env=os.environ | variables, capture_output=True, text=True, check=False
        )
    if "-v" in sys.argv:
        print(done.stderr)
    number = re.search(r"^Ran (\d+) tests", done.stderr, re.MULTILINE)
    if number is None:
        sys.exit(done.stderr)
    failed = re.findall(
        r"^(?:FAIL|ERROR): \S+ \((?:tasks|unittest\.loader)\.(?:test_\w+\.)?([\w.]+)\)", done.stderr, re.M
    )
    return int(number[1]), set(failed)


def environment() -> Path | None:
    """The Python of a virtual environment with Penstock and Django 6; None: there is no Python for it."""
    python, stamp = VENV / "bin/python", VENV / ".installed"
    pins = [ROOT / "pyproject.toml", ROOT / "constraints.txt"]
    if stamp.exists() and all(stamp.stat().st_mtime > pin.stat().st_mtime for pin in pins):
        return python
    base = next((path for version in NEWEST if (path := pythons.find(version)) is not None), None)
    if base is None:
        return None
    print(f"installing Penstock and Django 6 into {VENV.name}", flush=True)
    subprocess.run([base, "-m", "venv", VENV], check=True)
    pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    subprocess.run([*pip, "-c", "constraints.txt", "-e", ".[all]"], cwd=ROOT, check=True)
    subprocess.run([*pip, DJANGO], check=True)
    stamp.touch()
    return python


def sdist(python: Path, version: str) -> Path:
    """Django's sdist, fetched if the environment has none yet."""
    archive = VENV / "sdist" / f"django-{version}.tar.gz"
    if not archive.exists():
        options = ["--quiet", "--no-deps", "--no-binary", ":all:", "--dest", str(archive.parent)]
        subprocess.run([python, "-m", "pip", "download", *options, f"django=={version}"], check=True)
    return archive


def unpack(archive: Path, folder: Path, *, ours: bool, backport: bool) -> None:
    """Unpack the tests of tasks.

    Arguments:
        ours: with our backends for Django's.
        backport: with the backport's names for Django's.
    """
    with tarfile.open(archive) as tar:
        for member in tar:
            _, _, name = member.name.partition("/tests/")
            if not name.startswith("tasks/") or (file := tar.extractfile(member)) is None:
                continue
            text = file.read().decode()
            for kind in ("Immediate", "Dummy") if ours else ():
                home = f"django.tasks.backends.{kind.lower()}"
                text = text.replace(f"{home}.{kind}Backend", f"on_penstock.{kind}Backend")
                text = text.replace(f"from {home} import", "from on_penstock import")
            # Ours needs a database, which Django's tests without transactions may not use.
            text = text.replace("SimpleTestCase", "TransactionTestCase")
            for pattern, replacement in BACKPORT if backport else ():
                text = re.sub(pattern, replacement, text)
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)


def output(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
