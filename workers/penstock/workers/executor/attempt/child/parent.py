"""Children as their worker sees them: it prepares what they import, and starts them."""

from __future__ import annotations

import asyncio
import json
import logging
import multiprocessing
import os
import socket
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.context import ForkServerProcess
from typing import TYPE_CHECKING, Any

from penstock.producers.traces import current_traceparent
from penstock.schemas.jobs.kind import Kind
from penstock.workers.executor.attempt.attempt import Attempt
from penstock.workers.executor.attempt.child.environment import allowed
from penstock.workers.executor.attempt.child.logs import levels
from penstock.workers.executor.attempt.child.main import Program, call_handler, main
from penstock.workers.executor.attempt.child.messages import FromChild, Raised, Returned
from penstock.workers.executor.attempt.child.pipe import Message
from penstock.workers.executor.attempt.child.process import Child
from penstock.workers.executor.attempt.child.server import SOFT_LIMIT, VARIABLE, Setup
from penstock.workers.executor.attempt.errors import NoChildProcess, TimedOut

if TYPE_CHECKING:
    from penstock.config.settings import Settings

log = logging.getLogger("penstock.executor")

_START_SECONDS = 30.0
"""How long the start of a child is tried again while the machine has no process or file descriptor left."""
_PRELOADED = ("penstock.workers.cli", "penstock.workers.executor.attempt.suspects.main")

_setups: list[Setup] = []
_modules: tuple[str, ...] = ()
_settings: Settings | None = None


def call_first(function: str, *arguments: Any) -> None:
    """Have every child call a function before it imports the modules of handlers. Call it before a worker starts.

    It is called once in the server that children are forked off, which has no threads and must get none; and again in
    a child only if it failed there. What it registers, such as handlers, all children have.

    Arguments:
        function: as `module:function`.
        arguments: values that JSON can hold.
    """
    setup = (function, arguments)
    if setup not in _setups:
        _setups.append(setup)


def prepare(modules: Sequence[str], settings: Settings) -> None:
    """Set the modules that a child must import to know the handlers and what they need. Called once, when a worker
    boots."""
    global _modules, _settings
    _modules, _settings = tuple(modules), settings
    traces = [name for name in ("opentelemetry.trace",) if name in sys.modules]
    os.environ[VARIABLE] = json.dumps([sys.path, _setups, [*_PRELOADED, *traces, *modules]])
    preload = [main.__module__, "penstock.workers.executor.attempt.child.server"]
    multiprocessing.get_context("forkserver").set_forkserver_preload(preload)


class TimeLimits:
    """Deadlines of an attempt in a child, by the loop's clock, from now on; None: there is none."""

    def __init__(self, kind: Kind) -> None:
        now = asyncio.get_running_loop().time()
        self.deadline = None if kind.timeout is None else now + kind.timeout.total_seconds()
        self.soft = None if kind.soft_timeout is None else now + kind.soft_timeout.total_seconds()
        self.late = f"took longer than its timeout of {kind.timeout}"


async def exchange(child: Child, attempt: Attempt, request: Message, limits: TimeLimits) -> bool:
    """Have a child run the handler of an attempt, and wait until it has answered or died. False: it did neither in
    time."""
    child.begin(attempt.context)
    child.pipe.send(request)
    soft = None
    if limits.soft is not None:
        soft = asyncio.get_running_loop().call_at(limits.soft, child.send_signal, SOFT_LIMIT)
    try:
        return await child.has_ended(lambda: limits.deadline)
    finally:
        if soft is not None:
            soft.cancel()


class Children:
    """Starts child processes, and runs each isolated attempt in one of its own."""

    def __init__(self) -> None:
        # All calls of multiprocessing: two that ask for an exit code at a time lose it.
        self._processes = ThreadPoolExecutor(1, "penstock children")

    async def run(self, attempt: Attempt) -> Any:
        """Run the handler of an attempt in a new process, and return its result as JSON.

        Raises:
            ChildFailed: it raised, ran out of memory or was killed; names the signal and its peak of memory.
            TimedOut: it took longer than its kind's timeout; it was killed.
        """
        limits = TimeLimits(attempt.handler.kind)
        try:
            async with asyncio.timeout_at(limits.deadline) as clock:
                subject = f"job {attempt.context.job_id}"
                child = await self.start(subject, call_handler, FromChild[Returned | Raised])
        except TimeoutError as error:
            if clock.expired():
                raise TimedOut(f"{limits.late} before its process could be started") from error
            raise
        try:
            if not await exchange(child, attempt, _isolated_request(attempt), limits):
                raise TimedOut(f"{limits.late}; its process was killed")
        except asyncio.CancelledError:
            await child.end()
            if not child.succeeded:  # in time after all
                raise
        finally:
            await child.end()
        return child.result()

    async def start(self, subject: str, program: Program, messages: type[FromChild[Any]]) -> Child:
        """Start a child, which waits for its first request.

        Arguments:
            subject: what the child is for, for the log.
            messages: what the program sends, with its answers.

        Raises:
            NoChildProcess: the machine refused a process for half a minute.
        """
        loop = asyncio.get_running_loop()
        give_up_at, pause = loop.time() + _START_SECONDS, 0.1
        while True:
            try:
                return await self._try_to_start(program, messages)
            except (OSError, EOFError) as error:  # a limit of the machine, or the fork server was killed
                if loop.time() + pause > give_up_at:
                    raise NoChildProcess(f"no child process could be started: {error!r}") from error
                log.warning("%s: no child process can be started yet: %r", subject, error)
            await asyncio.sleep(pause)
            pause = min(pause * 2, 2.0)

    async def _try_to_start(self, program: Program, messages: type[FromChild[Any]]) -> Child:
        ours, theirs = socket.socketpair()
        start = self._processes.submit(_start_process, theirs, program)
        try:
            # Where this is cancelled the child finds that its pipe is closed, and ends.
            child = Child(await asyncio.wrap_future(start), messages, self._processes)
            await child.open(ours)
            return child
        except BaseException:
            ours.close()
            if start.cancelled():  # before it began
                theirs.close()
            raise


def _start_process(connection: socket.socket, program: Program) -> ForkServerProcess:
    with connection:
        process = multiprocessing.get_context("forkserver").Process(
            target=main, args=(connection, program), daemon=False
        )
        process.start()
    # Handlers in threads that use multiprocessing would ask for its exit code, too, and the interpreter would wait for
    # it at its end.
    multiprocessing.process._children.discard(process)  # type: ignore[attr-defined]
    return process


# Requests.


def load_request(*modules: str) -> Message:
    """The part of a child's first request that it needs to load the handlers.

    Arguments:
        modules: in addition to those of `prepare`.
    """
    return {"setups": _setups, "modules": (*_modules, *modules), "settings": _settings, "levels": levels()}


def request_for(attempt: Attempt) -> Message:
    """The part of a request that every program that runs a job needs."""
    return {
        "kind": attempt.handler.kind.name,
        "job": attempt.claim.message.job.model_dump_json(by_alias=True),
    }


def call_request(attempt: Attempt) -> Message:
    """The request to call the handler of an attempt."""
    context = attempt.context
    return request_for(attempt) | {
        "context": {
            "job_id": context.job_id,
            "attempt": context.attempt,
            "tenant": context.tenant,
            "queue": context.queue,
            "worker": context.worker,
            "key": context.key,
            "deadline": context.deadline,
            "enqueued_at": context.enqueued_at,
            "traceparent": current_traceparent() or attempt.claim.message.traceparent,
            "fence": context.fence,
        },
        "tracked": context.tracked,
        "memory_bytes": attempt.handler.memory_bytes,
    }


def _isolated_request(attempt: Attempt) -> Message:
    return (
        load_request(attempt.handler.function.__module__)
        | call_request(attempt)
        | {"environment": allowed(os.environ, () if _settings is None else _settings.isolated_env)}
    )
