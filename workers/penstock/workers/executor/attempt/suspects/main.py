"""The program of a suspect's child: it runs the attempt as a worker does, and answers with its outcome."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import logging
import os
import signal
from contextvars import Context
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, get_type_hints

from pydantic import create_model

from penstock.config.settings import Settings
from penstock.ledger.sql.database import Database
from penstock.ledger.transitions.claim import Claim
from penstock.ledger.transitions.outcome import AttemptOutcome
from penstock.schemas.jobs.kind import registry
from penstock.schemas.wire.codec import Message as JobMessage
from penstock.workers.executor.attempt.child.calls import find_handler, join_trace, load_handlers
from penstock.workers.executor.attempt.child.messages import Checked
from penstock.workers.executor.attempt.child.pipe import ChildEnd, Message
from penstock.workers.executor.attempt.child.server import SOFT_LIMIT
from penstock.workers.executor.attempt.outcome import one_line, outcome_of
from penstock.workers.executor.attempt.run import AttemptRunner
from penstock.workers.executor.runtime.runtime import make_runtime
from penstock.workers.handlers.registry import Handler, handlers
from penstock.workers.handlers.resources import is_provided

log = logging.getLogger("penstock.executor")


_APART = ("claim", "result", "exception")
"""Fields of an outcome that are not in the answer: the worker has the claim, the result is sent apart, and an exception
stays where it was raised."""

if TYPE_CHECKING:
    OutcomeFields = Any
else:
    _hints = {name: hint for name, hint in get_type_hints(AttemptOutcome).items() if name not in _APART}
    OutcomeFields = create_model(
        "OutcomeFields", __base__=Checked, **{name: (hint, ...) for name, hint in _hints.items()}
    )


class Unfit(Checked):
    """The answer of a child that cannot run the attempt, and why."""

    unfit: str


class Ended(Checked):
    """The answer of a child whose attempt has ended: its outcome, without what `_APART` names."""

    outcome: OutcomeFields


def run_attempt(pipe: ChildEnd, request: Message) -> Message:
    """Run the attempt of the request. Returns the fields of its outcome, or why it cannot be run here."""
    try:
        load_handlers(pipe, request)
        handler = _announcing(find_handler(request["kind"], request), pipe)
        for resource in handler.resources.values():
            if resource is not Settings and not is_provided(resource):
                raise LookupError(f"nothing that it imports provides {resource.__qualname__}")
    except Exception as error:
        log.warning("a child process cannot run a job of kind %s", request["kind"], exc_info=True)
        return {"unfit": one_line(error)}
    _ignore_termination()
    settings, claim = request["settings"], _unpacked(request, handler)
    database = Database(settings.database_url, pool_size=1)
    runtime = make_runtime(
        settings,
        database,
        name=request["worker"],
        concurrency=1,
        observers=(),
        changes=None,
        handlers=handlers,
        registry=registry,
    )
    runner = AttemptRunner(runtime, _Progress(pipe))
    attempt = runner.prepare(claim, handler)

    def begin() -> asyncio.Task[AttemptOutcome]:
        context = Context()
        context.run(join_trace, request["traceparent"])
        attempt.task = task = asyncio.get_running_loop().create_task(runner.run(attempt), context=context)
        task.add_done_callback(lambda _: pipe.stop_receiving())
        return task

    runtime.loop.start()
    task = runtime.loop.call(begin)
    while (message := pipe.receive()) is not None:
        runtime.loop.call_soon(attempt.request_stop, message["stop"])
    if not task.done():
        raise BrokenPipeError("the worker is gone")
    outcome = outcome_of(attempt, task)
    runtime.loop.run(runner.close())
    database.close()
    return {"outcome": _fields(outcome, *_APART), "result": outcome.result}


def pack(claim: Claim) -> Message:
    """The part of a request that has the claim, without classes of the user's: the child has not imported any yet."""
    return {"claim": _fields(claim, "message"), "message": _fields(claim.message, "kind", "job")}


def _unpacked(request: Message, handler: Handler) -> Claim:
    job = handler.kind.job.model_validate_json(request["job"])
    claim = Claim(JobMessage(kind=handler.kind, job=job, **request["message"]), **request["claim"])
    claim.started_at = datetime.now(UTC)  # its timeout does not count the wait for this process
    return claim


def _fields(value: Any, *exclude: str) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(value) if field.name not in exclude]
    return {name: getattr(value, name) for name in names}


def _announcing(handler: Handler, pipe: ChildEnd) -> Handler:
    """The handler, which tells the worker that it is called: its timeout counts from then on."""
    function = handler.function

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        pipe.send({"started": True})
        return function(*arguments, **named)

    return dataclasses.replace(handler, function=call)


def _ignore_termination() -> None:
    """Ignore SIGTERM, as a shutdown sends it to all processes of a service: the worker says when to stop."""
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.signal(SOFT_LIMIT, signal.SIG_DFL)  # its fork server ignores it
    os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))


class _Progress:
    def __init__(self, pipe: ChildEnd) -> None:
        self._pipe = pipe

    def progress(self, job_id: str, done: int, total: int | None, note: str | None) -> None:
        self._pipe.send({"progress": (done, total, note)})
