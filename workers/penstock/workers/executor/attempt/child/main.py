"""Main function of a child, and the program that calls an isolated handler in it."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import signal
import socket
import traceback
from collections.abc import Callable
from multiprocessing import forkserver

from penstock.workers.executor.attempt.child.calls import HandlerCalls, leave
from penstock.workers.executor.attempt.child.environment import replace_environment
from penstock.workers.executor.attempt.child.pipe import ChildEnd, Message

Program = Callable[[ChildEnd, Message], Message | None]
"""Runs the attempt of a request, and returns the answer for its worker, with the JSON of a result under `result`; None:
it has answered itself."""


def main(connection: socket.socket, program: Program) -> None:
    """Run a program on the first request of the worker, and answer."""
    code = 1
    try:
        _lead_session()
        pipe = ChildEnd(connection)
        request = pipe.receive()
        if request is not None:
            answer = program(pipe, request)
            if answer is not None:
                pipe.answer(answer)
        code = 0
    except BrokenPipeError:
        pass  # the worker is gone, and takes no answer
    except BaseException:
        traceback.print_exc()
    finally:
        leave(code)


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
    calls = HandlerCalls(pipe, request, lasting=False)
    try:
        return calls.answer(request)
    finally:
        calls.close()
