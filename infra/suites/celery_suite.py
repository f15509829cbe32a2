"""Celery's own integration suite, against Celery's worker and against ours: `make celery-suite`.

It comes from the source distribution of the installed Celery, into a cache outside of the repository. The one fixture
that starts a worker is replaced by `celery_fixture`; nothing else changes.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from penstock.workers.local.up.redis_server import RedisServer

HERE = Path(__file__).parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "penstock"
MODULES = ("test_tasks", "test_canvas", "test_inspect")
CONFIG = "[pytest]\npython_classes = test_*\nmarkers =\n    flaky\n    timeout\n"
PLUGINS = ("-p", "celery.contrib.pytest", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:penstock")
GOOD = ("passed", "skipped")


def fetch(celery_version: str) -> Path:
    """The folder of Celery's source distribution, downloaded if it is not there yet."""
    folder = CACHE / f"celery-{celery_version}"
    if not folder.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        package = f"celery=={celery_version}"
        download = ["download", "--quiet", "--no-deps", "--no-binary", "celery", package, "--dest", str(CACHE)]
        subprocess.run([sys.executable, "-m", "pip", *download], check=True)
        with tarfile.open(CACHE / f"{folder.name}.tar.gz") as archive:
            archive.extractall(CACHE, filter="data")
    return folder


@contextmanager
def own_redis(folder: Path) -> Iterator[str]:
    server = RedisServer(folder)
    server.start()
    try:
        yield server.url
    finally:
        server.stop()


def run_suite(source: Path, folder: Path, broker: str | None, ours: bool, words: Sequence[str]) -> dict[str, str]:
    """Run the suite once. Returns the outcome of each test by its name.

    Arguments:
        broker: URL of RabbitMQ; None: the Redis of the results is the broker, too.
        words: further arguments of pytest.
    """
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source / "t", folder / "t")
    (folder / "pytest.ini").write_text(CONFIG)
    (folder / "penstock").mkdir()
    if ours:
        with (folder / "t/integration/conftest.py").open("a") as conftest:
            conftest.write("\nfrom celery_fixture import celery_session_worker  # noqa: E402,F401,F811\n")
    with own_redis(folder / "redis") as redis:
        host, port = redis.partition("://")[2].split("/")[0].rsplit(":", 1)
        environment = os.environ | {
            "TEST_BACKEND": redis,
            "TEST_BROKER": broker or redis,
            "REDIS_HOST": host,
            "REDIS_PORT": port,
            "PYTHONPATH": str(HERE),
            "SUITE_FOLDER": str(folder / "penstock"),
        }
        files = [f"t/integration/{module}.py" for module in MODULES]
        report = folder / "report.xml"
        command = [sys.executable, "-m", "pytest", *PLUGINS, "--junit-xml", str(report), "-q", *files, *words]
        with (folder / "output").open("wb") as output:
            subprocess.run(command, cwd=folder, env=environment, stdout=output, stderr=output, check=False)
    return read_report(report)


def read_report(report: Path) -> dict[str, str]:
    """JUnit's report → the outcome of each test: `passed`, `skipped` or `failed`."""
    outcomes: dict[str, str] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        problems = [part.tag for part in case if part.tag in ("failure", "error")]
        outcome = "failed" if problems else "skipped" if case.find("skipped") is not None else "passed"
        outcomes[name] = "failed" if outcomes.get(name) == "failed" else outcome
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--broker", action="append", choices=["redis", "rabbitmq"], help="both if not given")
    parser.add_argument("--amqp", default="amqp://guest:guest@127.0.0.1:5672//", help="RabbitMQ, a virtual host alone")
    parser.add_argument("--pool", choices=["threads", "processes"], default="processes", help="of our worker")
    parser.add_argument("--only", choices=["stock", "ours"], help="both if not given")
    parser.add_argument("--compare", action="store_true", help="run nothing: compare the last runs")
    options, words = parser.parse_known_args()
    os.environ["SUITE_POOL"] = options.pool
    source = fetch(version("celery"))
    code = 0
    for broker in options.broker or ["redis", "rabbitmq"]:
        results: dict[str, dict[str, str]] = {}
        for who in [options.only] if options.only else ["stock", "ours"]:
            url, folder = options.amqp if broker == "rabbitmq" else None, CACHE / f"run-{broker}-{who}"
            if options.compare:
                if not (folder / "report.xml").exists():
                    parser.error(f"{folder} has no report: run the suite with --broker {broker} --only {who} first")
                results[who] = read_report(folder / "report.xml")
            else:
                results[who] = run_suite(source, folder, url, who == "ours", words)
            passed = sum(outcome == "passed" for outcome in results[who].values())
            print(f"{broker}, {who}: {passed} of {len(results[who])} passed", flush=True)
        if len(results) == 2:
            of_stock = [name for name, outcome in results["stock"].items() if outcome == "passed"]
            missed = [name for name in of_stock if results["ours"].get(name) not in GOOD]
            share = 1 - len(missed) / max(len(of_stock), 1)
            print(f"{broker}: ours passes {share:.1%} of the {len(of_stock)} that stock passes; it misses:")
            print("".join(f"  {name}\n" for name in missed), end="", flush=True)
            code |= share < 0.95
    return code


if __name__ == "__main__":
    raise SystemExit(main())
