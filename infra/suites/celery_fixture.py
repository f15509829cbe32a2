"""The fixture that takes the place of the one that starts a worker in Celery's integration suite.

As there, the worker runs in a thread of the tests' process: tests look for its signals, its log and its state there.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery.result import _set_task_join_will_block
from celery.utils.nodenames import anon_nodename
from celery.worker.state import successful_requests

from penstock.config.settings import load_settings
from penstock.ledger.transitions.outcome import AttemptOutcome
from penstock.schemas.states import Outcome
from penstock.workers.engines import run_worker
from penstock.workers.engines.celery.adopted.application import adopt_loaded
from penstock.workers.engines.celery.app import after_setup
from penstock.workers.engines.host import Host
from penstock.workers.executor.runtime.observers import Observer

FOLDER = Path(__file__).parent
APPLICATION = "celery_application:app"
START_SECONDS = 60.0


class Successes(Observer):
    """Keeps Celery's set of the tasks that have succeeded."""

    def ended(self, outcome: AttemptOutcome) -> None:
        if outcome.name is Outcome.SUCCEEDED:
            successful_requests.add(outcome.claim.message.id)


class Processes:
    """A dispatcher, and a worker in a thread of this process.

    Arguments:
        app: the application that the worker adopts; processes of its own load `celery_application`.
    """

    def __init__(self, app: Any, folder: Path) -> None:
        paths = [str(FOLDER), os.getcwd(), os.environ.get("PYTHONPATH", "")]
        os.environ |= {
            "PENSTOCK_BROKER_URL": os.environ["TEST_BROKER"],
            "PENSTOCK_DATABASE_URL": f"sqlite:///{folder}/ledger.db",
            "PENSTOCK_STORAGE_URL": f"file://{folder}/files",
            "PENSTOCK_PREFIX": f"suite{os.getpid()}",
            "PENSTOCK_POOL": os.environ.get("SUITE_POOL", "threads"),
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        }
        self._app, self._log = app, folder / "dispatcher.log"
        self._thread = threading.Thread(target=self._work, name="worker", daemon=True)
        self._has_host = threading.Event()

    def start(self) -> None:
        self._run("db", "upgrade").wait(START_SECONDS)
        self._dispatcher = self._run("dispatcher", "--celery", APPLICATION)
        self._thread.start()

    def stop(self) -> None:
        if self._has_host.wait(START_SECONDS):
            self._host.stop()
        self._thread.join(START_SECONDS)
        self._dispatcher.terminate()
        self._dispatcher.wait(START_SECONDS)

    def _run(self, *words: str) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen([sys.executable, "-m", "penstock", *words], stdout=log, stderr=log)

    def _work(self) -> None:
        settings = load_settings()
        adopt_loaded(self._app, APPLICATION, settings)
        after_setup.append(self._take)
        run_worker("celery", settings, queues=["celery"], concurrency=1, name=anon_nodename())

    def _take(self, host: Host) -> None:
        host.worker.executor.observers.append(Successes())
        self._host = host
        self._has_host.set()


@pytest.fixture(scope="session")
def celery_session_worker(
    celery_session_app: Any, celery_includes: Any, celery_class_tasks: Any
) -> Iterator[Processes]:
    for module in celery_includes:
        celery_session_app.loader.import_task_module(module)
    for task in celery_class_tasks:
        celery_session_app.register_task(task)
    celery_session_app.finalize()
    with tempfile.TemporaryDirectory() as folder:
        processes = Processes(celery_session_app, Path(os.environ.get("SUITE_FOLDER", folder)))
        processes.start()
        try:
            deadline = time.monotonic() + START_SECONDS
            ping = celery_session_app.tasks["celery.ping"]
            ping.delay().get(timeout=deadline - time.monotonic(), disable_sync_subtasks=False)
            celery_session_app.set_current()
            celery_session_app.set_default()
            _set_task_join_will_block(False)  # as Celery's fixture does: tests in this process wait for results
            yield processes
        finally:
            processes.stop()
