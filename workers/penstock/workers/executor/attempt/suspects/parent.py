"""Suspects as their worker sees them: it starts their children, follows them, and judges their deaths."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import os
from collections.abc import Coroutine
from typing import Any

from penstock.config.errors import LedgerUnavailable
from penstock.ledger.rows import suspect_runs
from penstock.ledger.transitions.outcome import AttemptOutcome
from penstock.producers.traces import current_traceparent
from penstock.workers.executor.attempt.attempt import Attempt
from penstock.workers.executor.attempt.child.messages import FromChild
from penstock.workers.executor.attempt.child.parent import load_request, request_for
from penstock.workers.executor.attempt.child.process import Child
from penstock.workers.executor.attempt.errors import ChildTerminated, NoChildProcess, TimedOut
from penstock.workers.executor.attempt.modes import STOPPING_SECONDS
from penstock.workers.executor.attempt.outcome import crashed, failed, interrupted, postponed, stopped
from penstock.workers.executor.attempt.run import AttemptRunner
from penstock.workers.executor.attempt.suspects.main import Ended, Unfit, pack, run_attempt
from penstock.workers.executor.runtime.runtime import Runtime
from penstock.workers.handlers.resources import is_overridden

log = logging.getLogger("penstock.executor")

_FEW = 4
"""Suspects at a time, or as many as the machine has processors."""
_PATIENCE_SECONDS = STOPPING_SECONDS + 1.0
"""For a child whose attempt should have ended by its timeout."""


class Suspects:
    """Runs attempts: those of suspects in children, a few at a time, all others by the runner in this process.

    Arguments:
        apart: False: those of suspects, too.
    """

    def __init__(self, runtime: Runtime, runner: AttemptRunner, *, apart: bool) -> None:
        self._settings, self._worker, self._capacity = runtime.settings, runtime.name, runtime.capacity
        self._database, self._io = runtime.database, runtime.io
        self._runner, self._children = runner, runner.children
        self._slots = asyncio.Semaphore(min(runtime.capacity.slots, max(_FEW, os.cpu_count() or 1)))
        self._apart = apart and "forkserver" in multiprocessing.get_all_start_methods()
        self._unfit: set[str] = set()  # kinds

    def run(self, attempt: Attempt) -> Coroutine[Any, Any, AttemptOutcome]:
        """Run an attempt to its end, whatever the handler does."""
        return self._run_suspect(attempt) if attempt.claim.crashes else self._runner.run(attempt)

    async def _run_suspect(self, attempt: Attempt) -> AttemptOutcome:
        """Run an attempt that its claim has put on record as apart, so that no other's crash counts against it."""
        outcome = None
        if not attempt.mode.in_process:
            outcome = await self._runner.run(attempt)
        elif self._can_run_apart(attempt):
            outcome = await self._run_in_child(attempt)
        if outcome is None:
            try:
                await self._end_run(attempt)
            except LedgerUnavailable as error:  # only while the worker drains
                return postponed(attempt, str(error))
            return await self._runner.run(attempt)
        if not attempt.claim.tracked:
            with contextlib.suppress(LedgerUnavailable):  # it only stays on record
                await self._end_run(attempt)
        return outcome

    async def _run_in_child(self, attempt: Attempt) -> AttemptOutcome | None:
        """The outcome of an attempt in a child. None: a child cannot run it."""
        async with self._slots:
            message = attempt.claim.message
            if message.kind.name in self._unfit:  # as another one has found meanwhile
                return None
            log.warning(
                "job %s (%s) runs in a process of its own: %d of its runs ended in a crash",
                message.id,
                message.kind.name,
                attempt.claim.crashes,
            )
            try:
                child = await self._children.start(f"job {message.id}", run_attempt, FromChild[Unfit | Ended])
            except NoChildProcess as error:
                return postponed(attempt, str(error))
            try:
                in_time = await self._follow(attempt, child)
            finally:
                if child.answer is None:
                    child.kill()
                await child.end()
        return self._outcome(attempt, child, in_time)

    async def _end_run(self, attempt: Attempt) -> None:
        """Record that a job runs with the others after all, or, of an untracked one, that it has ended."""
        claim = attempt.claim
        await self._io.ledger(lambda: suspect_runs.end(self._database, claim.message.id, claim.fence))

    async def _follow(self, attempt: Attempt, child: Child) -> bool:
        """Wait until the child has answered or died. False: it did neither in time."""
        clock, timeout = asyncio.get_running_loop().time, attempt.claim.message.timeout
        own = {
            "worker": self._worker,
            "settings": self._settings,
            "traceparent": current_traceparent() or attempt.claim.message.traceparent,
        }
        child.begin(attempt.context)
        load = load_request(attempt.handler.function.__module__)
        child.pipe.send(load | request_for(attempt) | pack(attempt.claim) | own)

        def latest() -> float | None:
            if timeout is None or not child.begun_at:
                return None
            return child.begun_at + timeout.total_seconds() + _PATIENCE_SECONDS

        try:
            return await child.has_ended(latest)
        except asyncio.CancelledError:
            if attempt.stop is None:
                raise
            child.pipe.send({"stop": attempt.stop})
            stop_by = clock() + STOPPING_SECONDS
            return await child.has_ended(lambda: stop_by)

    def _outcome(self, attempt: Attempt, child: Child, in_time: bool) -> AttemptOutcome | None:
        """The outcome of an attempt whose child has ended. None: it could not run it."""
        answer = child.answer
        if isinstance(answer, Ended):
            return AttemptOutcome(attempt.claim, **dict(answer.outcome), result=child.answer_result or None)
        if attempt.stop is not None:
            return stopped(attempt)
        if answer is not None:
            self._give_up(attempt, answer.unfit)
            return None
        if not in_time:
            timeout = attempt.claim.message.timeout
            return failed(attempt, TimedOut(f"took longer than its timeout of {timeout}; its process was killed"))
        death = child.how_it_died()
        if isinstance(death, ChildTerminated) and self._capacity.closed:
            return interrupted(attempt, "the worker stopped")
        return crashed(attempt, str(death), attempt.handler.kind.max_crashes or self._settings.max_crashes)

    def _can_run_apart(self, attempt: Attempt) -> bool:
        handler = attempt.handler
        if not self._apart or handler.kind.name in self._unfit:
            return False
        if "<locals>" in handler.function.__qualname__:
            self._give_up(attempt, "its handler is a local function")
            return False
        return not any(map(is_overridden, handler.resources.values()))

    def _give_up(self, attempt: Attempt, reason: str) -> None:
        kind = attempt.handler.kind.name
        if kind in self._unfit:  # another one has found it meanwhile
            return
        self._unfit.add(kind)
        log.warning(
            "jobs of kind %s run with the others after a crash of their worker, as a child process cannot run them: %s",
            kind,
            reason,
        )
