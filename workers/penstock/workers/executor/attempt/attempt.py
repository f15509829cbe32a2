"""`Attempt`: a claimed job on its way through a handler, and the mode in which that handler runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from penstock.ledger.transitions.claim import Claim
from penstock.ledger.transitions.outcome import AttemptOutcome
from penstock.workers.executor.followups.celery_canvas import CeleryCanvas
from penstock.workers.executor.followups.webhooks import OutgoingWebhooks
from penstock.workers.handlers.context import Context
from penstock.workers.handlers.registry import Handler

Stop = Literal["cancelled", "interrupted"]


@dataclass(slots=True)
class ClaimedJob:
    """A claimed job with the handler of its kind."""

    claim: Claim
    handler: Handler


@dataclass(slots=True)
class Attempt(ClaimedJob):
    """A run of a claimed job.

    Attributes:
        task: its end is the end of the attempt, unless it was `left_behind`.
        begun_at: when the handler was called, by the loop's clock; 0 before and after that.
        stop: why it is stopped; set before `task` is cancelled, at `stopped_at` by the loop's clock.
        left_behind: its coroutine ignored that it was to stop, and the attempt has ended without it.
        canvas: reads what an unmodified Celery client wants to follow; None: nothing follows.
        webhooks: makes the outgoing webhooks of its end; None: there are none.
    """

    context: Context
    mode: HandlerMode
    task: asyncio.Task[AttemptOutcome] | None = None
    begun_at: float = 0.0
    stop: Stop | None = None
    stopped_at: float = 0.0
    left_behind: bool = False
    canvas: CeleryCanvas | None = None
    webhooks: OutgoingWebhooks | None = None

    def request_stop(self, stop: Stop) -> None:
        """Ask the handler to stop, once it runs; on the loop of its task. A second request changes nothing."""
        if self.stop is None and self.task is not None:
            self.stop, self.stopped_at = stop, self.task.get_loop().time()
            self.context.cancel()
            if stop == "cancelled" and self.context.interrupt is not None:
                self.context.interrupt()
            self.task.cancel()


class HandlerMode(Protocol):
    """The way to run handlers of one sort: coroutines, plain functions, or isolated functions.

    Attributes:
        in_process: the handler runs in this process, which gives it its resources.
        open_session: makes `ctx.session`; None: the handler cannot have one.
        open_once: makes `ctx.once(key)`.
    """

    in_process: bool
    open_session: Callable[[], Any] | None
    open_once: Callable[[Context, str], Any]

    async def call(self, attempt: Attempt, arguments: dict[str, Any]) -> Any:
        """Call the handler and return its result.

        Raises:
            TimedOut: it took longer than its kind's timeout; and whatever the handler raises.
        """
        ...

    async def commit(self, session: Any, outcome: AttemptOutcome) -> None:
        """Commit the handler's transaction with its outcome in it. Raises FenceLost."""
        ...

    async def close(self, session: Any) -> None:
        """Roll back what was not committed."""
        ...
