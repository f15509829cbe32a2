"""Dramatiq's middleware hooks around a job, for middleware that a user added."""

from __future__ import annotations

from typing import Any

import dramatiq
from dramatiq.middleware import Middleware, MiddlewareError
from pydantic_core import from_json

from penstock.config.errors import JobFailed
from penstock.ledger.transitions.claim import Claim
from penstock.ledger.transitions.outcome import AttemptOutcome
from penstock.schemas.states import Outcome
from penstock.schemas.wire.codec import Message
from penstock.workers.executor.runtime.observers import Observer

_HOOKS = (
    "before_process_message",
    "after_process_message",
    "after_skip_message",
    "before_ack",
    "after_ack",
    "before_nack",
    "after_nack",
)


class MiddlewareObserver(Observer):
    """An `Observer` that calls the hooks of middleware. Of no use if `hooks` is empty.

    Hooks run on the loop of the jobs and must be quick; they observe, so `SkipMessage` skips nothing. Messages carry
    the job's fields with `***` for sensitive ones. A dead letter is a nack, every other outcome an ack; both
    hooks run when the outcome is on record, while the broker gets the acknowledgement in a batch.

    Attributes:
        hooks: the hooks that the middleware present at boot overrides.
    """

    def __init__(self, broker: dramatiq.Broker) -> None:
        self._broker = broker
        self._proxies: dict[str, dramatiq.MessageProxy] = {}
        self.hooks = {
            hook
            for hook in _HOOKS
            if any(getattr(type(middleware), hook) is not getattr(Middleware, hook) for middleware in broker.middleware)
        }

    def started(self, claim: Claim) -> None:
        proxy = self._proxies[claim.message.id] = dramatiq.MessageProxy(_message(claim.message, claim.attempt))
        self._emit("before_process_message", proxy)

    def ended(self, outcome: AttemptOutcome) -> None:
        message = outcome.claim.message
        proxy = self._proxies.pop(message.id, None)
        if proxy is None:  # it never started: it had expired or crashed its workers
            proxy = dramatiq.MessageProxy(_message(message, outcome.claim.attempt))
            self._emit("after_skip_message", proxy)
        else:
            self._emit("after_process_message", proxy, **_results(outcome))
        if outcome.name is Outcome.INTERRUPTED:
            return  # it goes back to its queue
        settle = "nack" if outcome.name is Outcome.DEAD else "ack"
        if settle == "nack":
            proxy.fail()
        self._emit(f"before_{settle}", proxy)
        self._emit(f"after_{settle}", proxy)

    def _emit(self, hook: str, proxy: dramatiq.MessageProxy, **arguments: Any) -> None:
        if hook not in self.hooks:
            return
        when, _, event = hook.partition("_")
        try:
            (self._broker.emit_before if when == "before" else self._broker.emit_after)(event, proxy, **arguments)
        except MiddlewareError as error:
            self._broker.logger.warning("%s raised %r, which has no effect here", hook, error)


def _message(message: Message, attempt: int) -> dramatiq.Message[Any]:
    sent_at = 0 if message.sent_at is None else int(message.sent_at.timestamp() * 1000)
    return dramatiq.Message(
        queue_name=message.queue,
        actor_name=message.kind.name,
        args=(),
        kwargs=message.job.redacted(),
        options={"retries": attempt - 1},
        message_id=message.id,
        message_timestamp=sent_at,
    )


def _results(outcome: AttemptOutcome) -> dict[str, Any]:
    if outcome.name in (Outcome.RETRY, Outcome.DEAD, Outcome.CRASHED):
        error = JobFailed(outcome.claim.message.id, str(outcome.state), outcome.error)
        return {"result": None, "exception": error}
    return {"result": None if outcome.result is None else from_json(outcome.result), "exception": None}
