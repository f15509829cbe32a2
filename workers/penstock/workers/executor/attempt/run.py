"""Attempts: a claimed job's handler is called in its mode, and its end becomes an `AttemptOutcome`."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from typing import Any

from penstock.ledger.transitions.claim import Claim
from penstock.ledger.transitions.outcome import AttemptOutcome, FenceLost
from penstock.schemas.jobs.scrubbing import Scrub
from penstock.schemas.states import Outcome
from penstock.workers.executor.attempt.attempt import Attempt
from penstock.workers.executor.attempt.child.parent import Children
from penstock.workers.executor.attempt.large_results import LargeResults
from penstock.workers.executor.attempt.modes import make_modes
from penstock.workers.executor.attempt.once import Effects
from penstock.workers.executor.attempt.outcome import (
    failed,
    interrupted,
    one_line,
    postponed,
    returned,
    scrub_of,
    stopped,
)
from penstock.workers.executor.attempt.session import Sessions
from penstock.workers.executor.runtime.runtime import Runtime
from penstock.workers.handlers.context import Context, ProgressSink
from penstock.workers.handlers.registry import Handler
from penstock.workers.handlers.returns import JobCancelled

log = logging.getLogger("penstock.executor")


class AttemptRunner:
    """Prepares and runs the attempts of a worker.

    Arguments:
        sink: takes the progress that handlers report.

    Attributes:
        results: keeps the results that are too large for the ledger.
        children: runs attempts in processes of their own.
    """

    def __init__(self, runtime: Runtime, sink: ProgressSink) -> None:
        self.results = LargeResults(runtime)
        self.children = Children()
        self._sink, self._worker = sink, runtime.name
        self._canvas, self._webhooks = runtime.canvas, runtime.webhooks
        self._resources, self._capacity = runtime.resources, runtime.capacity
        self._sessions = Sessions(
            runtime.database, runtime.name, min(runtime.capacity.slots, runtime.settings.session_connections)
        )
        self._modes = make_modes(self._sessions, Effects(runtime), runtime.threads, self.children)

    def prepare(self, claim: Claim, handler: Handler) -> Attempt:
        """The attempt of a claim, with the context that its handler gets."""
        message, timeout, mode = claim.message, claim.message.kind.timeout, self._modes[handler.mode]
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

    async def run(self, attempt: Attempt) -> AttemptOutcome:
        """Run one attempt to its end. Never raises, whatever the handler does."""
        handler, context, mode = attempt.handler, attempt.context, attempt.mode
        try:
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
        except FenceLost:
            outcome = interrupted(attempt)
            outcome.recorded = False
            return outcome
        except Exception as error:
            if handler.kind.delivery != "at_most_once" and self._sessions.is_outage(error, attempt.claim.fence):
                return postponed(attempt, one_line(error))
            return failed(attempt, error)
        except BaseException as error:  # SystemExit of a handler must end the job, not the worker
            return failed(attempt, RuntimeError(f"the handler raised {one_line(error)}"))
        finally:
            if context.opened_session is not None:
                with contextlib.suppress(Exception):  # a connection that is gone has rolled back by itself
                    await mode.close(context.opened_session)

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
