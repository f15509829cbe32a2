"""Enters the dispatcher in the ledger beside the workers, so that people see whether one lives."""

from __future__ import annotations

from datetime import timedelta

from penstock.ledger.members import heartbeats
from penstock.ledger.sql.database import Database
from penstock.schemas.jobs.kind import DISPATCHER_QUEUE
from penstock.workers.dispatcher.poller import Poller
from penstock.workers.executor.attempt.memory import peak_memory


class Presence(Poller):
    """Nothing depends on it: a dispatcher whose row is missing or late sends all the same.

    Arguments:
        worker: the dispatcher's name among all workers.
    """

    name = "presence"

    def __init__(self, database: Database, worker: str, lease: timedelta) -> None:
        super().__init__()
        self.interval_seconds = lease.total_seconds() / 3
        self._database, self._worker, self._lease = database, worker, lease
        self._entered = False

    def work(self) -> bool:
        if self._entered:
            heartbeats.beat(
                self._database, self._worker, lease=self._lease, progress={}, peak_memory_bytes=peak_memory()
            )
        else:
            heartbeats.register(
                self._database,
                self._worker,
                engine=heartbeats.DISPATCHER,
                queues=[DISPATCHER_QUEUE],
                kinds={},
                lease=self._lease,
            )
            self._entered = True
        return False

    def close(self) -> None:
        if self._entered:
            heartbeats.sign_off(self._database, self._worker)
