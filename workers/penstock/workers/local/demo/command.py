"""`penstock demo`."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from penstock.producers.enqueue.producer import Producer
from penstock.workers.handlers.discovery import discover
from penstock.workers.local.demo.acts import Acts
from penstock.workers.local.demo.crash import crash
from penstock.workers.local.demo.narrator import Narrator, Row
from penstock.workers.local.demo.world.stage import IMPORTS, LEASE_SECONDS, set_stage
from penstock.workers.local.up.command import overview
from penstock.workers.local.up.lock import folder_lock
from penstock.workers.local.up.run import running_services
from penstock.workers.local.up.signals import Stopping, stopping_on_signals
from penstock.workers.local.up.supervisor import Supervisor

ENGINES = {"celery", "dramatiq"}


def run_demo(keep: bool = False) -> int:
    """Run everything in a temporary folder, put it to work and check what it did.

    Arguments:
        keep: leave all running, and the folder there, until Ctrl-C.

    Returns 0 if every check held, else 1; then the folder with the logs is left.

    Raises:
        PenstockError: something did not start.
    """
    narrator = Narrator()
    os.umask(0o077)
    folder = Path(tempfile.mkdtemp(prefix="penstock-demo-")).resolve()
    narrator.line(f"the demo keeps all its files in {folder}, and changes nothing else")
    narrator.line(f"here a silent worker loses its jobs after {LEASE_SECONDS:g} s, to save time; the default is 15 s")
    good = interrupted = False
    try:
        with stopping_on_signals() as stopping:
            good = _run(narrator, folder, stopping, keep)
    except KeyboardInterrupt:
        interrupted = True
        raise
    finally:
        nothing_began = not (folder / "log").exists()
        if nothing_began or ((good or interrupted) and not keep):
            shutil.rmtree(folder, ignore_errors=True)
            narrator.line("the folder was removed; `penstock demo --keep` keeps it, and leaves everything running")
        else:
            narrator.line(f"the files are in {folder}, the logs in {folder}/log")
    return 0 if good else 1


def _run(narrator: Narrator, folder: Path, stopping: Stopping, keep: bool) -> bool:
    """Run all acts. Returns whether every check held."""
    discover(IMPORTS)
    with folder_lock(folder) as lock, set_stage(folder) as stage:
        layout = stage.layout
        narrator.title("Starting")
        with running_services(layout, lock=lock, stopping=stopping, say=narrator.line) as (supervisor, database):
            stopping.check()
            with _supervised(supervisor), Producer.from_settings(layout.settings) as producer:
                for line in overview(layout):
                    narrator.console.print(line, markup=False)
                acts = Acts(narrator, stage, producer, database, stopping)
                narrator.title("Uploads, reports, a sync and mails")
                rows = acts.work()
                narrator.title("The dead letter is replayed, and a second sync fetches the changes")
                rows += acts.recover()
                narrator.title("A worker is killed")
                rows.append(crash(narrator, producer, database, supervisor, folder, stopping))
                narrator.finished(rows[-1])
                narrator.title("In the background")
                rows += [acts.schedule(), acts.flower(), acts.metrics(), _both_engines(rows)]
                good = all(row.problem is None for row in rows)
                narrator.table(rows)
                if keep:
                    narrator.line(
                        f"all keeps running; in another terminal: source {layout.environment_file}; penstock jobs list"
                    )
                    narrator.line(f"Flower: {layout.flower_url}, login {layout.flower_auth}; Ctrl-C stops everything")
                    stopping.wait()
            narrator.title("Stopping")
    verdict = "every check held" if good else f"{sum(row.problem is not None for row in rows)} checks failed"
    narrator.line(f"{len(rows)} results in {narrator.seconds:.0f} s: {verdict}")
    return good


@contextmanager
def _supervised(supervisor: Supervisor) -> Iterator[None]:
    """Let the supervisor restart what dies while the block runs."""
    ended = threading.Event()
    thread = threading.Thread(target=supervisor.watch, args=(ended,), name="supervisor")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _both_engines(rows: list[Row]) -> Row:
    used = {engine for row in rows for engine in row.engine.split(", ") if engine}
    missing = ", ".join(sorted(ENGINES - used))
    problem = f"{missing} ran no job" if missing else None
    return Row("both engines", "", f"{' and '.join(sorted(used))} ran jobs", None, "", problem)
