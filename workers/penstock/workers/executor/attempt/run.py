"""Attempts: a claimed job's handler is called in its mode, and its end becomes an `AttemptOutcome`."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from penstock.ledger.transitions.claim import Claim
from penstock.ledger.transitions.outcome import AttemptOutcome, FenceLost
from penstock.schemas.jobs.scrubbing import Scrub
from penstock.schemas.states import Outcome
from penstock.workers.executor.attempt.attempt import Attempt, HandlerMode
from penstock.workers.executor.attempt.child.parent import Children
from penstock.workers.executor.attempt.errors import ChildCrashed
from penstock.workers.executor.attempt.large_results import LargeResults
from penstock.workers.executor.attempt.modes import ProcessMode, make_modes
from penstock.workers.executor.attempt.once import Effects
from penstock.workers.executor.attempt.outcome import (
    crashed,
    failed,
    interrupted,
    one_line,
    postponed,
    returned,
    scrub_of,
    stopped,
    traceback_of,
)
from penstock.workers.executor.attempt.session import Sessions
from penstock.workers.executor.runtime.runtime import Runtime
from penstock.workers.handlers.context import Context, ProgressSink
from penstock.workers.handlers.registry import Handler
from penstock.workers.handlers.returns import JobCancelled

if TYPE_CHECKING:
    from penstock.workers.executor.attempt.child.pool import Pool

log = logging.getLogger("penstock.executor")

_POOL = "pool"
"""Reason of the capacity's pause."""


class AttemptRunner:
    """Prepares and runs the attempts of a worker.

    Arguments:
        sink: takes the progress that handlers report.

    Attributes:
        results: keeps the results that are too large for the ledger.
        children: runs attempts in processes of their own.
        pool: runs attempts in processes that are kept; None: no handler has needed it.
    """

    def __init__(self, runtime: Runtime, sink: ProgressSink) -> None:
        self.results = LargeResults(runtime)
        self.children = Children()
        self.pool: Pool | None = None
        self._sink, self._worker, self._settings = sink, runtime.name, runtime.settings
        self._canvas, self._webhooks = runtime.canvas, runtime.webhooks
        self._resources, self._capacity = runtime.resources, runtime.capacity
        self._sessions = Sessions(
            runtime.database, runtime.name, min(runtime.capacity.slots, runtime.settings.session_connections)
        )
        self._effects = Effects(runtime)
        self._modes = make_modes(self._sessions, self._effects, runtime.threads, self.children)

    def prepare(self, claim: Claim, handler: Handler) -> Attempt:
        """The attempt of a claim, with the context that its handler gets."""
        message, timeout, mode = claim.message, claim.message.timeout, self._mode_of(handler)
        context = Context(
            job_id=message.id,
            attempt=claim.attempt,
            tenant=message.tenant,
            key=message.key,
            deadline=None if timeout is None else claim.started_at + timeout,
            enqueued_at=message.sent_at,
            kind=message.kind.name,
            queue=message.queue,
            worker=self._worker,
            sink=self._sink,
            traceparent=message.traceparent,
            open_session=mode.open_session if claim.tracked else None,
            open_once=mode.open_once if claim.tracked else None,
            fence=claim.fence,
            scrub=_lazily(claim) if message.kind.shapes else str,
        )
        canvas = None if message.embed is None else self._canvas
        return Attempt(claim, handler, context, mode, canvas=canvas, webhooks=self._webhooks)

    def make_pool(self, kinds: Sequence[str] = ()) -> Pool:
        """Make the pool of processes, unless there is one.

        Arguments:
            kinds: see `Pool`.
        """
        if self.pool is None:
            from penstock.workers.executor.attempt.child.pool import Pool  # not at the top: few workers have one

            eager, capacity = self._settings.pool == "processes", self._capacity
            processors = os.cpu_count() or 1
            self.pool = Pool(
                self.children,
                self._settings,
                size=lambda: capacity.slots if eager else min(capacity.slots, processors),
                kinds=kinds,
                eager=eager,
            )
            self._modes["process"] = ProcessMode(self._effects, self.pool.run)
        return self.pool

    def open_pool(self, kinds: Sequence[str]) -> None:
        """Make the pool. The worker takes no jobs before the processes are ready that it always has."""
        pool = self.make_pool(kinds)
        if pool.eager:
            self._capacity.pause(_POOL)
            pool.open(lambda: self._capacity.resume(_POOL))

    def _mode_of(self, handler: Handler) -> HandlerMode:
        name = handler.mode_in(self._settings.pool)
        if name == "process":
            self.make_pool()
        return self._modes[name]

    async def run(self, attempt: Attempt) -> AttemptOutcome:
        """Run one attempt to its end. Never raises, whatever the handler does."""
        handler, context, mode = attempt.handler, attempt.context, attempt.mode
        try:
            if handler.refuse is not None and (refusal := handler.refuse(attempt.claim.message.job)) is not None:
                return returned(attempt, refusal)
            arguments: dict[str, Any] = {}
            if handler.context is not None:
                arguments[handler.context] = context
            if mode.in_process:
                for name, resource_type in handler.resources.items():
                    arguments[name] = await self._resources.get(resource_type)
            attempt.begun_at = asyncio.get_running_loop().time()
            value = await mode.call(attempt, arguments)
            attempt.begun_at = 0.0
            outcome = returned(attempt, value)
            if self.results.holds(outcome):
                await self.results.store(outcome)
            if context.opened_session is not None and outcome.name == Outcome.SUCCEEDED:
                try:
                    await mode.commit(context.opened_session, outcome)
                    outcome.recorded = True
                except FenceLost:
                    outcome.recorded = False
            return outcome
        except asyncio.CancelledError as error:
            # One that no one asked for comes out of the handler's own code.
            return stopped(attempt) if attempt.stop is not None else failed(attempt, error)
        except JobCancelled as error:
            # A thread raises this also because its worker drains.
            return stopped(attempt) if attempt.stop is not None or self._capacity.closed else failed(attempt, error)
        except ChildCrashed as error:
            if attempt.stop is not None:
                return stopped(attempt)
            return crashed(attempt, str(error), handler.kind.max_crashes or self._settings.max_crashes)
        except FenceLost:
            outcome = interrupted(attempt)
            outcome.recorded = False
            return outcome
        except Exception as error:
            if handler.kind.delivery != "at_most_once" and self._sessions.is_outage(error, attempt.claim.fence):
                return postponed(attempt, one_line(error))
            return failed(attempt, error)
        except BaseException as error:  # SystemExit of a handler must end the job, not the worker
            outcome = failed(attempt, RuntimeError(f"the handler raised {one_line(error)}"))
            outcome.traceback = traceback_of(error, scrub_of(attempt.claim))
            return outcome
        finally:
            if context.opened_session is not None:
                with contextlib.suppress(Exception):  # a connection that is gone has rolled back by itself
                    await mode.close(context.opened_session)

    def pool_pids(self) -> tuple[int, ...] | None:
        """Pids of the processes of the pool that are ready; None: the worker has none."""
        return None if self.pool is None else tuple(self.pool.pids)

    @property
    def is_opening(self) -> bool:
        """Whether the first processes of the pool are not ready yet."""
        return self.pool is not None and self.pool.is_opening

    def adapt(self) -> None:
        """Follow a change of the number of slots."""
        if self.pool is not None:
            self.pool.adapt()

    async def close_pool(self) -> None:
        """End the processes of the pool."""
        if self.pool is not None:
            await self.pool.close()

    async def close(self) -> None:
        """Close the resources, and the sessions' connections."""
        for closing in (self._resources.close(), self._sessions.close()):
            try:
                await closing
            except Exception:
                log.exception("a resource failed to close")


def _lazily(claim: Claim) -> Scrub:
    """The scrub of a claim, made when it is first used: few attempts log or report anything."""
    make = functools.cache(lambda: scrub_of(claim))
    return lambda text: make()(text)
