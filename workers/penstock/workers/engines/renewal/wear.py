"""`Wear`: the jobs that a worker process has done and the memory it uses, against `max_jobs` and `max_memory`."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable

from penstock.config.errors import ConfigError
from penstock.config.settings import Settings
from penstock.ledger.rows.attempts import in_mebibytes
from penstock.ledger.transitions.claim import Claim
from penstock.ledger.transitions.outcome import AttemptOutcome
from penstock.schemas.wire.codec import Message
from penstock.workers.executor.attempt.memory import resident_memory

log = logging.getLogger("penstock.worker")

JITTER = 0.1
"""Share of `max_jobs` by which the number of a process may differ, so that processes do not renew all at a time."""


class Wear:
    """An observer that asks for a successor, once.

    Arguments:
        ask: called on the executor's loop when a job has ended and the process has reached a limit.

    Attributes:
        jobs: attempts that have ended in this process.
        most_jobs: attempts after which it asks; drawn near `max_jobs`.
    """

    def __init__(self, settings: Settings, ask: Callable[[], None]) -> None:
        self.jobs = 0
        self.most_jobs = None if settings.max_jobs is None else _draw(settings.max_jobs)
        self._most_memory, self._ask, self._asked = settings.max_memory, ask, False

    def check_start(self) -> None:
        """Raises ConfigError: this process exceeds `max_memory` before its first job, and so would each successor."""
        if self._most_memory is not None and (memory := resident_memory()) > self._most_memory:
            limit = in_mebibytes(self._most_memory, 1)
            raise ConfigError(
                f"max_memory is {limit}, but this worker uses {in_mebibytes(memory, 1)} before its "
                f"first job; set max_memory (PENSTOCK_MAX_MEMORY, --max-memory) well above that"
            )

    def received(self, message: Message) -> None: ...

    def refused(self, message: Message, reason: str) -> None: ...

    def started(self, claim: Claim) -> None: ...

    def ended(self, outcome: AttemptOutcome) -> None:
        self.jobs += 1
        if not self._asked and (reason := self._reason()) is not None:
            self._asked = True
            log.info("this worker process renews itself: %s", reason)
            self._ask()

    def _reason(self) -> str | None:
        if self.most_jobs is not None and self.jobs >= self.most_jobs:
            return f"it has done {self.jobs} jobs"
        if self._most_memory is not None and (memory := resident_memory()) > self._most_memory:
            limit = in_mebibytes(self._most_memory, 1)
            return (
                f"it uses {in_mebibytes(memory, 1)} of memory, and max_memory is {limit}; it has done {self.jobs} jobs"
            )
        return None


def _draw(max_jobs: int) -> int:
    return max(1, round(max_jobs * random.uniform(1 - JITTER, 1 + JITTER)))
