"""Main function of a child, and the program that calls an isolated handler in it."""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import json
import logging
import multiprocessing
import os
import resource
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from multiprocessing import forkserver
from typing import Any, NoReturn

from penstock.config.settings import Settings, inherit_settings
from penstock.ledger.rows.attempts import in_mebibytes
from penstock.ledger.sql.text import LONGEST_ERROR, storable
from penstock.producers.traces import inherit
from penstock.schemas.jobs.kind import registry
from penstock.schemas.jobs.retry_policy import RetryPolicy
from penstock.schemas.jobs.scrubbing import Scrub
from penstock.workers.executor.attempt.child.environment import replace_environment
from penstock.workers.executor.attempt.child.logs import send_records
from penstock.workers.executor.attempt.child.messages import as_value
from penstock.workers.executor.attempt.child.pipe import ChildEnd, Message, pack
from penstock.workers.executor.attempt.memory import peak_memory
from penstock.workers.executor.attempt.once import Once
from penstock.workers.executor.attempt.outcome import one_line, result_as_json, retry_decision, traceback_of
from penstock.workers.handlers import django_project
from penstock.workers.handlers.context import Context
from penstock.workers.handlers.registry import Handler, handlers
from penstock.workers.handlers.resources import LocalResources
from penstock.workers.handlers.returns import Discard, Retry, Snooze

log = logging.getLogger("penstock.executor")


Program = Callable[[ChildEnd, Message], Message]
"""Runs the attempt of a request, and returns the answer for its worker, with the JSON of a result under `result`."""


def main(connection: socket.socket, program: Program) -> None:
    """Run the one attempt that the worker sends, and answer."""
    code = 1
    try:
        _lead_session()
        pipe = ChildEnd(connection)
        request = pipe.receive()
        if request is not None:
            answer = program(pipe, request)
            result = answer.pop("result", None) or ""
            pipe.send({"answer": answer}, result)
        code = 0
    except BrokenPipeError:
        pass  # the worker is gone, and takes no answer
    except BaseException:
        traceback.print_exc()
    finally:
        _exit(code)  # at once: threads that the handler left must not keep the process


def _exit(code: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # closed, or not there
            stream.flush()
    os._exit(code)


def _lead_session() -> None:
    """Become the leader of a session whose processes end together, also when the worker is killed."""
    os.setsid()
    # A process that the handler starts with the fork server must be of this session, so not of the worker's server.
    forkserver._forkserver.__init__()  # type: ignore[misc]
    worker = multiprocessing.parent_process()
    if worker is None or not hasattr(fcntl, "F_SETSIG"):
        return  # not on Linux
    # When the worker closes its end of this pipe, the kernel kills the session: no thread, no other process.
    fcntl.fcntl(worker.sentinel, fcntl.F_SETOWN, -os.getpid())
    fcntl.fcntl(worker.sentinel, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(worker.sentinel, fcntl.F_SETFL, fcntl.fcntl(worker.sentinel, fcntl.F_GETFL) | os.O_ASYNC)


def call_handler(pipe: ChildEnd, request: Message) -> Message:
    """The result of the attempt, or how it failed."""
    replace_environment(request["environment"])
    settings = request["settings"]
    if settings is not None:
        inherit_settings(settings)
    resources = LocalResources(settings or Settings())
    try:
        try:
            return _run(pipe, request, resources)
        finally:
            _release_memory_cap()
    except MemoryError as error:
        answer = _failure(error, request)
        if (limit := request["memory_bytes"]) is not None:
            peak = f", with a peak of {in_mebibytes(size)}" if (size := peak_memory()) else ""
            answer["error"] = f"MemoryError: over its memory cap of {limit} bytes{peak}"
        return answer
    except BaseException as error:
        return _failure(error, request)
    finally:
        try:
            resources.close()
        except BaseException:
            log.exception("a resource failed to close")


def _run(pipe: ChildEnd, request: Message, resources: LocalResources) -> Message:
    handler = find_handler(pipe, request)
    join_trace(request["context"]["traceparent"])
    worker = _Worker(pipe)
    kind = handler.kind
    context = Context(
        **request["context"],
        kind=kind.name,
        sink=worker,
        open_once=worker.once if request["tracked"] else None,
        scrub=lambda text: kind.scrub_of_payload(lambda: json.loads(request["job"]))(text),
    )
    arguments: dict[str, Any] = {handler.context: context} if handler.context else {}
    arguments |= {name: resources.get(resource_type) for name, resource_type in handler.resources.items()}
    job = handler.kind.job.model_validate_json(request["job"])
    if (limit := request["memory_bytes"]) is not None:
        _cap_memory(limit)
    with django_project.old_connections_closed():
        value = _call(handler, job, arguments)
    answer: Message = {"value": None, "outgoing": context.outgoing}
    result = ""
    if isinstance(value, Snooze | Discard | Retry):
        answer["value"] = as_value(value)
    elif value is not None:
        result = result_as_json(handler, value)
    pack(answer, result)  # raises where the worker would not take it
    return {**answer, "result": result}


def find_handler(pipe: ChildEnd, request: Message) -> Handler:
    """The handler of a request, whose modules are imported and whose logs go to the worker from now on.

    Raises:
        RuntimeError: none of the modules has it; and whatever they raise.
    """
    django_project.set_up()
    for module in request["modules"]:
        importlib.import_module(module)
    send_records(pipe, request["levels"])  # modules may have set logging up
    kind = registry[request["kind"]]
    handler = handlers.find(kind)
    if handler is None:
        raise RuntimeError(f"kind {kind.name!r} has no handler in {', '.join(request['modules'])}, imported again here")
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
            _exit(end.code if isinstance(end.code, int) else int(end.code is not None))
        raise
    except BaseException:
        if os.getpid() != pid:
            traceback.print_exc()
            _exit(1)
        raise
    if os.getpid() != pid:
        _exit(0)
    return value


def _failure(error: BaseException, request: Message) -> Message:
    kind = registry.find(request["kind"])
    scrub: Scrub = str if kind is None else kind.scrub_of_payload(lambda: json.loads(request["job"]))
    text, trace = scrub(one_line(error)), traceback_of(error, scrub)
    if not isinstance(error, Exception):  # as in the worker itself: it ends the job, under the policy of an error
        text, error = f"RuntimeError: the handler raised {text}", RuntimeError()
    error_type, wait = retry_decision(error, RetryPolicy() if kind is None else kind.retry, datetime.now(UTC))
    bases = [(base.__module__, base.__qualname__) for base in error_type.__mro__]
    return {"error": storable(text, LONGEST_ERROR), "traceback": trace, "bases": bases, "wait": wait}


class _Worker:
    """The worker as its child sees it: takes progress, and writes the records of effects."""

    def __init__(self, pipe: ChildEnd) -> None:
        self._pipe = pipe
        self._asking = threading.Lock()

    def progress(self, job_id: str, done: int, total: int | None, note: str | None) -> None:
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
        with self._asking:
            self._pipe.send({"once": (method, key, *argument)})
            answer = self._pipe.receive()
        if answer is None:
            raise BrokenPipeError("the worker is gone")
        if "raise" in answer:
            raise answer["raise"]
        return answer["value"]


def _cap_memory(allowed: int) -> None:
    """Allow this much beyond what the process has now."""
    with open("/proc/self/statm") as statm:
        pages = int(statm.read().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + allowed
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _release_memory_cap() -> None:
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
