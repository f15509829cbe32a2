"""Events that the console reads: those of workers, never those of jobs, which the ledger has.

The broker keeps the others back, so their rate does not matter here.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from celery.events import EventReceiver
from flower.events import Events

log = logging.getLogger("penstock.flower")

_OF_WORKERS = "worker.#"
_LONGEST_PAUSE = 30.0


class WorkerEvents(Events):  # type: ignore[misc]  # flower has no types
    """Flower's events without jobs: it keeps no history, and asks workers for nothing."""

    def __init__(self, app: Any, io_loop: Any, *, most_workers: int) -> None:
        super().__init__(app, io_loop, enable_events=False, max_tasks_in_memory=1, max_workers_in_memory=most_workers)

    def run(self) -> None:
        """Receive until the process ends; connect again after a failure."""
        pause = 1.0
        while True:
            try:
                with self.capp.connection() as connection:
                    receiver = EventReceiver(
                        connection, handlers={"*": self.on_event}, routing_key=_OF_WORKERS, app=self.capp
                    )
                    pause = 1.0
                    receiver.capture(limit=None, timeout=None, wakeup=True)
            except Exception as error:
                lost = isinstance(error, self.capp.connection().connection_errors)
                text = "events of workers cannot be received: %s; trying again in %.0f s"
                log.warning(text, error, pause, exc_info=None if lost else error)
                time.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)

    def on_event(self, event: Any) -> None:
        if str(event.get("type", "")).startswith("worker-"):
            super().on_event(event)
