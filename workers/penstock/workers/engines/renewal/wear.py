"""`Wear`: the jobs that a worker process has done and the memory it uses, against `max_jobs` and `max_memory`."""

from __future__ import annotations

import logging
from collections.abc import Callable

from penstock.config.errors import ConfigError
from penstock.config.settings import Settings
from penstock.ledger.rows.attempts import in_mebibytes
from penstock.ledger.transitions.outcome import AttemptOutcome
from penstock.workers.executor.attempt.memory import WearLimits, resident_memory
from penstock.workers.executor.runtime.observers import Observer

log = logging.getLogger("penstock.worker")


class Wear(Observer):
    """An observer that asks for a successor, once.

    Arguments:
        ask: called on the executor's loop when a job has ended and the process has reached a limit.

    Attributes:
        jobs: attempts that have ended in this process.
        limits: the attempts, and the memory, after which it asks.
    """

    def __init__(self, settings: Settings, ask: Callable[[], None]) -> None:
        self.jobs = 0
        self.limits = WearLimits(settings)
        self._ask, self._asked = ask, False

    @staticmethod
    def applies(settings: Settings) -> bool:
        """Whether worker processes have a limit. With the pool of processes those have it, and not their worker."""
        return settings.pool != "processes" and (settings.max_jobs is not None or settings.max_memory is not None)

    def check_start(self) -> None:
        """Raises ConfigError: this process exceeds `max_memory` before its first job, and so would each successor."""
        most = self.limits.most_memory
        if most is not None and (memory := resident_memory()) > most:
            limit = in_mebibytes(most, 1)
            raise ConfigError(
                f"max_memory is {limit}, but this worker uses {in_mebibytes(memory, 1)} before its "
                f"first job; set max_memory (PENSTOCK_MAX_MEMORY, --max-memory) well above that"
            )

    def ended(self, outcome: AttemptOutcome) -> None:
        self.jobs += 1
        if not self._asked and (reason := self.limits.reason(self.jobs)) is not None:
            self._asked = True
            log.info("this worker process renews itself: %s", reason)
            self._ask()
