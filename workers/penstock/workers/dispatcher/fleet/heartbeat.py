"""Records the dispatcher in the ledger next to the workers, so that people see whether it is alive."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from penstock.ledger.members import heartbeats
from penstock.ledger.sql.database import Database
from penstock.schemas.jobs.kind import DISPATCHER_QUEUE
from penstock.workers.dispatcher.poller import Poller, log
from penstock.workers.executor.attempt.memory import peak_memory


class Heartbeat(Poller):
    """Renews the dispatcher's row. Nothing depends on it: without the row, the dispatcher sends all the same.

    Arguments:
        worker: the dispatcher's name among all workers.
        stop: called when a person has ordered the dispatcher to drain or to stop, which are the same here.
    """

    name = "heartbeat"

    def __init__(
        self, database: Database, worker: str, lease: timedelta, stop: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__()
        self._stop_dispatcher = stop
        self.interval_seconds = lease.total_seconds() / 3
        self._database, self._worker, self._lease = database, worker, lease
        self._is_registered = False

    def run_once(self) -> bool:
        if self._is_registered:
            answer = heartbeats.beat(self._database, self._worker, lease=self._lease, peak_memory_bytes=peak_memory())
            if answer.order is not None:
                log.warning("%s was ordered to %s, by a person", self._worker, answer.order)
                self._stop_dispatcher()
        else:
            heartbeats.register(
                self._database,
                self._worker,
                engine=heartbeats.DISPATCHER,
                queues=[DISPATCHER_QUEUE],
                kinds={},
                lease=self._lease,
            )
            self._is_registered = True
        return False

    def close(self) -> None:
        if self._is_registered:
            heartbeats.sign_off(self._database, self._worker)
