"""Erased jobs leave a running Flower and its history within seconds, and one that was stopped when it starts again.

Flower knows jobs from events only, so it asks the ledger: after each erasure for all its jobs, and for those whose
events come late, since a job's message may outlive its row.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from flower.app import Flower
from tornado.ioloop import PeriodicCallback

from penstock.config.errors import LedgerUnavailable
from penstock.ledger.retention import erasure
from penstock.ledger.sql.database import Database

log = logging.getLogger("penstock.flower")

LOOK_MILLISECONDS = 2_000
_LATE_SECONDS = 10.0
"""An event that comes so long after it was made may be of a job that was erased meanwhile."""
_LOOKS_AFTER_ERASURE = 10
"""Further looks after an erasure, for events that were under way."""
_MARGIN = timedelta(days=1)
"""How long an erasure may take, and how far clocks may be apart."""
_LISTS = ("active", "reserved", "scheduled")


class Forgetting:
    """Looks into the ledger, and drops from Flower what is erased.

    Arguments:
        history: Flower's file.
    """

    def __init__(self, flower: Flower, database: Database, history: Path) -> None:
        self._flower, self._database, self._history = flower, database, history
        saved_at = max((file.stat().st_mtime for file in _files(history)), default=time.time())
        self._since = datetime.fromtimestamp(saved_at, UTC) - _MARGIN
        self._seen: list[tuple[str, int]] = []
        self._looks = 0
        self._suspects: set[str] = set()
        self._looking = False
        self._available = True
        self._watch_events()

    def start(self) -> None:
        PeriodicCallback(self.look, LOOK_MILLISECONDS).start()

    async def look(self) -> None:
        """Drop what was erased since the last look."""
        if self._looking:
            return
        self._looking = True
        try:
            await self._look()
            self._available = True
        except LedgerUnavailable as error:
            if self._available:
                log.warning("Flower cannot see which jobs were erased: %s", error)
            self._available = False
        finally:
            self._looking = False

    async def _look(self) -> None:
        run = asyncio.get_running_loop().run_in_executor
        lines = await run(None, erasure.lines_since, self._database, self._since)
        if lines != self._seen:
            self._looks = _LOOKS_AFTER_ERASURE
        suspects, self._suspects = self._suspects, set()
        erased: set[str] = set()
        try:
            if self._looks:
                held = list(self._flower.events.state.tasks)
                erased |= await run(None, self._ask, held, True)
            elif suspects:
                erased |= await run(None, self._ask, list(suspects), False)
        except LedgerUnavailable:
            self._suspects |= suspects
            raise
        self._seen, self._looks = lines, max(self._looks - 1, 0)
        if erased:
            self._drop(erased)

    def _ask(self, job_ids: list[str], absent_too: bool) -> set[str]:
        erased: set[str] = set()
        for at in range(0, len(job_ids), erasure.BATCH):
            batch = job_ids[at : at + erasure.BATCH]
            erased |= erasure.erased_among(self._database, batch, absent_too=absent_too)
        return erased

    def _drop(self, erased: set[str]) -> None:
        state = self._flower.events.state
        for job_id in erased:
            state.tasks.pop(job_id, None)
            state.search_engine.remove(job_id)
        for worker in self._flower.workers.values():
            for name in _LISTS:
                if isinstance(requests := worker.get(name), list):
                    worker[name] = [request for request in requests if request.get("id") not in erased]
        log.info("Flower has forgotten %d jobs after an erasure", len(erased))
        if self._flower.events.persistent:
            self._flower.events.save_state()
        for file in _files(self._history):
            if file.name.endswith(".corrupt"):  # what Flower could not read; it may have had them too
                file.unlink(missing_ok=True)

    def _watch_events(self) -> None:
        events = self._flower.events
        handle = events.on_event

        def handle_and_watch(event: Any) -> None:
            handle(event)
            if "uuid" in event and self._is_suspect(event):
                self._flower.io_loop.add_callback(self._suspects.add, event["uuid"])

        events.on_event = handle_and_watch

    @staticmethod
    def _is_suspect(event: Any) -> bool:
        return bool(event.get("type") == "task-revoked" or time.time() - event.get("timestamp", 0) > _LATE_SECONDS)


def _files(history: Path) -> Iterable[Path]:
    """The files that the history has with each of Python's databases."""
    return list(history.parent.glob(f"{history.name}*"))
