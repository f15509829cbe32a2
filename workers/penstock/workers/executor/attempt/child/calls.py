"""Calls of handlers in a child: their context, resources and result, and the signals that interrupt them."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import resource
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextvars import copy_context
from datetime import UTC, datetime
from typing import Any, NoReturn

from penstock.config.settings import Settings, inherit_settings
from penstock.ledger.rows.attempts import in_mebibytes
from penstock.ledger.sql.text import LONGEST_ERROR, storable
from penstock.producers.traces import inherit
from penstock.schemas.jobs.kind import registry
from penstock.schemas.jobs.overrides import override_kinds
from penstock.schemas.jobs.retry_policy import RetryPolicy
from penstock.schemas.jobs.scrubbing import Scrub
from penstock.workers.executor.attempt.child.logs import send_records
from penstock.workers.executor.attempt.child.messages import as_value
from penstock.workers.executor.attempt.child.pipe import ChildEnd, Message, pack
from penstock.workers.executor.attempt.child.server import SOFT_LIMIT, load
from penstock.workers.executor.attempt.errors import Terminated
from penstock.workers.executor.attempt.memory import peak_memory
from penstock.workers.executor.attempt.once import Once
from penstock.workers.executor.attempt.outcome import one_line, result_as_json, retry_decision, traceback_of
from penstock.workers.handlers import django_project
from penstock.workers.handlers.context import Context
from penstock.workers.handlers.registry import Handler, handlers
from penstock.workers.handlers.resources import LocalResources
from penstock.workers.handlers.returns import Discard, Resend, Retry, Snooze, SoftTimeLimitExceeded, why_final

log = logging.getLogger("penstock.executor")


class HandlerCalls:
    """Calls the handlers of a process, one at a time. Resources are opened once, and stay open until `close`.

    Arguments:
        request: what to load, as `load_request` of the worker makes it.
        lasting: the process goes on after a SIGTERM, which ends what runs.
    """

    def __init__(self, pipe: ChildEnd, request: Message, *, lasting: bool) -> None:
        if request["settings"] is not None:
            inherit_settings(request["settings"])
            override_kinds(request["settings"].kinds)
        self._pipe, self._request, self._loaded = pipe, request, False
        self._resources = LocalResources(request["settings"] or Settings())
        self._interrupts = _Interrupts(pipe, lasting)

    def load(self) -> None:
        """Import the handlers' modules, unless that is done. Raises what they raise."""
        if not self._loaded:
            load_handlers(self._pipe, self._request)
            self._loaded = True

    def open_resources(self, kind: str) -> None:
        """Open all that the handler of a kind asks for. Raises what opening raises."""
        for resource_type in find_handler(kind, self._request).resources.values():
            self._resources.get(resource_type)

    def answer(self, request: Message) -> Message:
        """The result of a handler, or how it failed."""
        worker = _Worker(self._pipe)
        try:
            try:
                return copy_context().run(self._run, request, worker)
            finally:
                _release_memory_cap(request)
        except MemoryError as error:
            answer = _failure(error, request)
            if (limit := request["memory_bytes"]) is not None:
                peak = f", with a peak of {in_mebibytes(size)}" if (size := peak_memory()) else ""
                answer["error"] = f"MemoryError: over its memory cap of {limit} bytes{peak}"
            return answer
        except BaseException as error:
            return _failure(error, request)
        finally:
            worker.ended = True

    def close(self) -> None:
        """Close the resources. One that fails to close is logged."""
        try:
            self._resources.close()
        except BaseException:
            log.exception("a resource failed to close")

    def _run(self, request: Message, worker: _Worker) -> Message:
        self.load()
        handler = find_handler(request["kind"], self._request)
        join_trace(request["context"]["traceparent"])
        kind = handler.kind
        context = Context(
            **request["context"],
            kind=kind.name,
            sink=worker,
            open_once=worker.once if request["tracked"] else None,
            scrub=lambda text: kind.scrub_of_payload(lambda: json.loads(request["job"]))(text),
        )
        with self._interrupts.of(context, handler):
            arguments: dict[str, Any] = {handler.context: context} if handler.context else {}
            arguments |= {name: self._resources.get(resource) for name, resource in handler.resources.items()}
            job = kind.job.model_validate_json(request["job"])
            if (limit := request["memory_bytes"]) is not None:
                _cap_memory(limit)
            with django_project.old_connections_closed():
                value = _call(handler, job, arguments)
        answer: Message = {"value": None, "outgoing": context.outgoing}
        result = ""
        if isinstance(value, Snooze | Discard | Retry | Resend):
            answer["value"] = as_value(value)
        elif value is not None:
            result = result_as_json(handler, value)
        pack(answer, result)  # raises where the worker would not take it
        return {**answer, "result": result}


class _Interrupts:
    """Signals of the worker, raised as errors in the handler that runs in the main thread. While none runs they do
    nothing.

    Arguments:
        termination: SIGTERM ends what runs, and not the process.
    """

    def __init__(self, pipe: ChildEnd, termination: bool) -> None:
        self._pipe = pipe
        self._context: Context | None = None
        self._soft_error: type[Exception] = SoftTimeLimitExceeded
        self._termination: type[SystemExit] = Terminated
        self._handlers = {SOFT_LIMIT: self._on_soft_limit}
        if termination:
            self._handlers[signal.SIGTERM] = self._on_termination
        self._install()
        os.register_at_fork(after_in_child=self._reset)

    @contextlib.contextmanager
    def of(self, context: Context, handler: Handler) -> Iterator[None]:
        """Raise them in the block, as the handler has them."""
        self._install()  # an earlier handler may have set its own
        self._context, self._soft_error = context, handler.soft_error
        self._termination = handler.termination or Terminated
        try:
            yield
        finally:
            self._context = self._pipe.pending = None

    def _install(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _reset(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in self._handlers:
                signal.signal(number, signal.SIG_DFL)

    def _on_soft_limit(self, number: int, frame: object) -> None:
        if (context := self._context) is not None:
            error = self._soft_error(f"job {context.job_id} has reached its soft_timeout")
            context.cancel(error)
            self._pipe.raise_soon(error)

    def _on_termination(self, number: int, frame: object) -> None:
        if (context := self._context) is not None:
            context.cancel()
            self._pipe.raise_soon(self._termination(f"its child process {os.getpid()} got SIGTERM"))


def load_handlers(pipe: ChildEnd, request: Message) -> None:
    """Import the modules of handlers. What is logged from then on goes to the worker. Raises what they raise."""
    load(request["setups"], request["modules"])
    send_records(pipe, request["levels"])  # modules may have set logging up


def find_handler(name: str, request: Message) -> Handler:
    """The handler of a kind. Raises RuntimeError where none of the loaded modules has it."""
    kind = registry.find(name)
    handler = None if kind is None else handlers.find(kind)
    if handler is None:
        raise RuntimeError(f"kind {name!r} has no handler in {', '.join(request['modules'])}, imported again here")
    return handler


def join_trace(traceparent: str | None) -> None:
    """Run the rest of this context in the trace of the attempt, whose span is its worker's."""
    if traceparent is None:
        return
    with contextlib.suppress(ImportError):
        import opentelemetry.trace  # noqa: F401  # the handler may load it later, and ask for the current span
    inherit(traceparent)


def _call(handler: Handler, job: Any, arguments: dict[str, Any]) -> Any:
    """Call the handler. A process that it forked ends here, as it would at the end of a program."""
    pid = os.getpid()
    try:
        value = handler.function(job, **arguments)
    except SystemExit as end:
        if os.getpid() != pid:
            leave(end.code if isinstance(end.code, int) else int(end.code is not None))
        raise
    except BaseException:
        if os.getpid() != pid:
            traceback.print_exc()
            leave(1)
        raise
    if os.getpid() != pid:
        leave(0)
    return value


def _failure(error: BaseException, request: Message) -> Message:
    kind = registry.find(request["kind"])
    scrub: Scrub = str if kind is None else kind.scrub_of_payload(lambda: json.loads(request["job"]))
    text, trace, final = scrub(one_line(error)), traceback_of(error, scrub), why_final(error)
    if isinstance(error, Terminated):
        text = str(error)
    elif not isinstance(error, Exception):  # as in the worker itself: it ends the job, under the policy of an error
        text, error = f"RuntimeError: the handler raised {text}", RuntimeError()
    error_type, wait = retry_decision(error, RetryPolicy() if kind is None else kind.retry, datetime.now(UTC))
    bases = [(base.__module__, base.__qualname__) for base in error_type.__mro__]
    answer = {"error": storable(text, LONGEST_ERROR), "traceback": trace, "bases": bases, "wait": wait}
    return {**answer, "final": final}


class _Worker:
    """The worker as its child sees it: takes the progress of an attempt, and writes the records of its effects.

    Attributes:
        ended: the attempt has answered, and nothing more may come of it.
    """

    def __init__(self, pipe: ChildEnd) -> None:
        self._pipe = pipe
        self._asking = threading.Lock()
        self.ended = False

    def progress(self, job_id: str, done: int, total: int | None, note: str | None) -> None:
        self._check()
        self._pipe.send({"progress": (done, total, note)})

    def once(self, context: Context, key: str) -> Once:
        return Once(context, key, self, lambda work: work())

    def begin(self, key: str, again: bool, at: datetime) -> Any:
        return self._ask("begin", key, again, at)

    def confirm(self, key: str, result: str | None) -> None:
        self._ask("confirm", key, result)

    def withdraw(self, key: str) -> None:
        self._ask("withdraw", key)

    def _ask(self, method: str, key: str, *argument: Any) -> Any:
        with self._asking, self._pipe.uninterrupted():
            self._check()
            self._pipe.send({"once": (method, key, *argument)})
            answer = self._pipe.receive()
        if answer is None:
            raise BrokenPipeError("the worker is gone")
        if "raise" in answer:
            raise answer["raise"]
        return answer["value"]

    def _check(self) -> None:
        if self.ended:
            raise RuntimeError("the attempt has ended: a thread that its handler left uses its context")


def leave(code: int) -> NoReturn:
    """End this process at once: threads that a handler left must not keep it."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # closed, or not there
            stream.flush()
    os._exit(code)


def _cap_memory(allowed: int) -> None:
    """Allow this much beyond what the process has now."""
    with open("/proc/self/statm") as statm:
        pages = int(statm.read().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + allowed
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _release_memory_cap(request: Message) -> None:
    if request["memory_bytes"] is None:
        return
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
