"""The fixture that takes the place of the one that starts a worker in Celery's integration suite."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery.utils.nodenames import anon_nodename
from celery.worker.state import successful_requests

FOLDER = Path(__file__).parent
APPLICATION = "celery_application:app"
START_SECONDS = 60.0


_SUCCEEDED = re.compile(r"Task \S+\[(\S+)\] succeeded")


class Processes:
    """A worker and a dispatcher. Their lines of the log are logged here again, and Celery's set of successful tasks is
    kept here, too: tests look for both, since Celery's own fixture runs the worker in a thread of this process."""

    def __init__(self, folder: Path) -> None:
        paths = [str(FOLDER), os.getcwd(), os.environ.get("PYTHONPATH", "")]
        self._environment = os.environ | {
            "PENSTOCK_BROKER_URL": os.environ["TEST_BROKER"],
            "PENSTOCK_DATABASE_URL": f"sqlite:///{folder}/ledger.db",
            "PENSTOCK_STORAGE_URL": f"file://{folder}/files",
            "PENSTOCK_PREFIX": f"suite{os.getpid()}",
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        }
        self._log = folder / "worker.log"
        self._all: list[subprocess.Popen[bytes]] = []
        self._stopped = threading.Event()

    def start(self, *worker_options: str) -> None:
        self._run("db", "upgrade").wait(START_SECONDS)
        self._run("worker", "--celery", APPLICATION, "--queues", "celery", *worker_options)
        self._run("dispatcher", "--celery", APPLICATION)
        threading.Thread(target=self._log_again, daemon=True).start()

    def stop(self) -> None:
        for process in self._all:
            process.terminate()
        for process in self._all:
            process.wait(30)
        self._stopped.set()

    def _run(self, *words: str) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            command = [sys.executable, "-m", "penstock", *words]
            process = subprocess.Popen(command, env=self._environment, stdout=log, stderr=log)
        self._all.append(process)
        return process

    def _log_again(self) -> None:
        log = logging.getLogger("celery.worker")
        with self._log.open() as lines:
            while not self._stopped.is_set():
                if line := lines.readline():
                    log.log(_level(line), "%s", line.rstrip())
                    if match := _SUCCEEDED.search(line):
                        successful_requests.add(match[1])
                else:
                    time.sleep(0.05)


def _level(line: str) -> int:
    for name in ("critical", "error", "warning", "debug"):
        if f"[{name}" in line:
            return getattr(logging, name.upper())
    return logging.INFO


@pytest.fixture(scope="session")
def celery_session_worker(
    celery_session_app: Any, celery_includes: Any, celery_class_tasks: Any
) -> Iterator[Processes]:
    for module in celery_includes:
        celery_session_app.loader.import_task_module(module)
    for task in celery_class_tasks:
        celery_session_app.register_task(task)
    with tempfile.TemporaryDirectory() as folder:
        processes = Processes(Path(os.environ.get("SUITE_FOLDER", folder)))
        pool = os.environ.get("SUITE_POOL", "threads")
        processes.start("--name", anon_nodename(), "--concurrency", "1", "--pool", pool)
        try:
            deadline = time.monotonic() + START_SECONDS
            ping = celery_session_app.tasks["celery.ping"]
            ping.delay().get(timeout=deadline - time.monotonic(), disable_sync_subtasks=False)
            yield processes
        finally:
            processes.stop()
