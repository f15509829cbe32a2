"""Celery's task signals, for code that listens to them."""

from __future__ import annotations

from typing import Any

import celery
from celery import signals
from celery.app.task import Context
from pydantic_core import from_json

from penstock.config.errors import JobFailed
from penstock.ledger.transitions.claim import Claim
from penstock.ledger.transitions.outcome import AttemptOutcome
from penstock.schemas.jobs.adopted import AdoptedJob
from penstock.schemas.states import Outcome
from penstock.schemas.wire.codec import Message
from penstock.workers.executor.runtime.observers import Observer

_STATES = {
    Outcome.SUCCEEDED: "SUCCESS",
    Outcome.DEAD: "FAILURE",
    Outcome.CANCELLED: "REVOKED",
    Outcome.DISCARDED: "REVOKED",
}


class SignalsObserver(Observer):
    """An `Observer` that sends a signal only where it has receivers.

    Receivers run on the loop of the jobs and must be quick. They get the fields with `***` for sensitive ones; Celery
    logs what they raise.
    """

    def __init__(self, app: celery.Celery, hostname: str) -> None:
        self._app, self._hostname = app, hostname

    def received(self, message: Message) -> None:
        if issubclass(message.kind.job, AdoptedJob):
            return  # its receivers get a request of Celery's own
        if signals.task_received.receivers:
            signals.task_received.send(sender=self._hostname, request=self._request(message, message.attempt))

    def started(self, claim: Claim) -> None:
        if _is_adopted(claim):
            return
        if signals.task_prerun.receivers:
            signals.task_prerun.send(**self._common(claim), kwargs=claim.message.job.redacted())

    def ended(self, outcome: AttemptOutcome) -> None:
        claim = outcome.claim
        if _is_adopted(claim):
            return
        common = self._common(claim)
        task = common["sender"]
        match outcome.name:
            case Outcome.SUCCEEDED if signals.task_success.receivers:
                signals.task_success.send(sender=task, result=_result(outcome))
            case Outcome.DEAD if signals.task_failure.receivers:
                signals.task_failure.send(
                    sender=task,
                    task_id=claim.message.id,
                    exception=_exception(outcome),
                    args=(),
                    kwargs=claim.message.job.redacted(),
                    traceback=None,
                    einfo=outcome.traceback,
                )
            case Outcome.RETRY | Outcome.SNOOZED | Outcome.INTERRUPTED | Outcome.CRASHED if (
                signals.task_retry.receivers
            ):
                request = self._request(claim.message, claim.attempt)
                signals.task_retry.send(sender=task, request=request, reason=outcome.error, einfo=outcome.traceback)
            case Outcome.CANCELLED | Outcome.DISCARDED if signals.task_revoked.receivers:
                request = self._request(claim.message, claim.attempt)
                terminated = outcome.name is Outcome.CANCELLED
                signals.task_revoked.send(
                    sender=task, request=request, terminated=terminated, signum=None, expired=False
                )
        if signals.task_postrun.receivers:
            signals.task_postrun.send(
                **common,
                kwargs=claim.message.job.redacted(),
                retval=_result(outcome),
                state=_STATES.get(outcome.name, "RETRY"),
            )

    def _common(self, claim: Claim) -> dict[str, Any]:
        task = self._app.tasks[claim.message.kind.name]
        return {"sender": task, "task_id": claim.message.id, "task": task, "args": ()}

    def _request(self, message: Message, attempt: int) -> Context:
        return Context(
            id=message.id,
            root_id=message.id,
            task=message.kind.name,
            args=(),
            kwargs=message.job.redacted(),
            retries=attempt - 1,
            hostname=self._hostname,
            delivery_info={"exchange": "", "routing_key": message.queue, "redelivered": None},
        )


def _is_adopted(claim: Claim) -> bool:
    """Whether Celery's own tracer runs the job, and sends its signals."""
    return issubclass(claim.message.kind.job, AdoptedJob)


def _result(outcome: AttemptOutcome) -> Any:
    return None if outcome.result is None else from_json(outcome.result)


def _exception(outcome: AttemptOutcome) -> JobFailed:
    """The handler's exception ended with its attempt, perhaps in another process; this carries what is on record."""
    return JobFailed(outcome.claim.message.id, str(outcome.state), outcome.error)
