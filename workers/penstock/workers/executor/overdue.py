"""Attempts whose coroutines do not end when they are asked to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from penstock.ledger.transitions.outcome import AttemptOutcome
from penstock.workers.executor.attempt.attempt import Attempt
from penstock.workers.executor.attempt.errors import TimedOut
from penstock.workers.executor.attempt.modes import STOPPING_SECONDS
from penstock.workers.executor.attempt.outcome import failed, stopped

_LOOK_SECONDS = 0.5
_PATIENCE_SECONDS = STOPPING_SECONDS + 1.0
"""Threads and children end by themselves within `STOPPING_SECONDS`; a coroutine can swallow its cancellation."""


class Overdue:
    """Looks regularly for such attempts. Runs on the executor's loop.

    Arguments:
        running: the attempts by the job's id.
        leave_behind: ends an attempt with an outcome, without its coroutine.
    """

    def __init__(self, running: Mapping[str, Attempt], leave_behind: Callable[[Attempt, AttemptOutcome], None]) -> None:
        self._running, self._leave_behind = running, leave_behind

    async def run(self) -> None:
        """Look regularly, until this is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            latest = loop.time() - _PATIENCE_SECONDS
            for attempt in list(self._running.values()):
                timeout = attempt.claim.message.timeout
                if attempt.stop is not None:
                    if attempt.stopped_at < latest:
                        self._leave_behind(attempt, stopped(attempt))
                elif timeout is not None and attempt.mode.in_process and attempt.begun_at:
                    seconds = timeout.total_seconds()
                    if attempt.begun_at + seconds < latest:
                        error = TimedOut(f"took longer than its timeout of {seconds:g} s, and did not stop after it")
                        self._leave_behind(attempt, failed(attempt, error))
