"""`penstock demo`."""

from __future__ import annotations

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
from penstock.workers.local.demo.show import Row, Show
from penstock.workers.local.demo.world.stage import IMPORTS, LEASE_SECONDS, set_stage
from penstock.workers.local.up.command import overview
from penstock.workers.local.up.lock import folder_lock
from penstock.workers.local.up.running import running
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
    show = Show()
    folder = Path(tempfile.mkdtemp(prefix="penstock-demo-")).resolve()
    show.line(f"everything of this demo lies in {folder}; nothing else is touched")
    show.line(
        f"a silent worker loses its jobs after {LEASE_SECONDS:g} s here, for the demo's sake; the default is 15 s"
    )
    good = interrupted = False
    try:
        with stopping_on_signals() as stopping:
            good = _run(show, folder, stopping, keep)
    except KeyboardInterrupt:
        interrupted = True
        raise
    finally:
        nothing_began = not (folder / "log").exists()
        if nothing_began or ((good or interrupted) and not keep):
            shutil.rmtree(folder, ignore_errors=True)
            show.line("the folder is removed; `penstock demo --keep` leaves it, and keeps everything running")
        else:
            show.line(f"left in {folder}; the logs are in {folder}/log")
    return 0 if good else 1


def _run(show: Show, folder: Path, stopping: Stopping, keep: bool) -> bool:
    """Whether all went well."""
    discover(IMPORTS)
    with folder_lock(folder) as lock, set_stage(folder) as stage:
        layout = stage.layout
        show.title("Starting")
        with running(layout, lock=lock, stopping=stopping, say=show.line) as (supervisor, database):
            stopping.check()
            with _watching(supervisor), Producer.from_settings(layout.settings) as producer:
                for line in overview(layout):
                    show.console.print(line, markup=False)
                acts = Acts(show, stage, producer, database, stopping)
                show.title("Uploads, reports, a sync and mails")
                rows = acts.work()
                show.title("Making amends: what was dead, and what has changed")
                rows += acts.amends()
                show.title("A worker is killed")
                rows.append(crash(show, producer, database, supervisor, folder, stopping))
                show.finished(rows[-1])
                show.title("What happened beside it")
                rows += [acts.schedule(), acts.flower(), _both_engines(rows)]
                good = all(row.problem is None for row in rows)
                show.table(rows)
                if keep:
                    show.line(f"all of it keeps running; `source {layout.environment_file}`, then penstock jobs list")
                    show.line(f"Flower: {layout.flower_url}, login {layout.flower_auth}; Ctrl-C stops everything")
                    stopping.wait()
            show.title("Stopping")
    verdict = "every check held" if good else f"{sum(row.problem is not None for row in rows)} checks failed"
    show.line(f"{len(rows)} things done in {show.seconds:.0f} s: {verdict}")
    return good


@contextmanager
def _watching(supervisor: Supervisor) -> Iterator[None]:
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
    problem = f"{missing} did nothing" if missing else None
    return Row("both engines", "", f"{' and '.join(sorted(used))} worked", None, "", problem)
