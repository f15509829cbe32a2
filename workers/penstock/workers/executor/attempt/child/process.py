"""`Child`: a child process as its worker sees it, with the attempt that it runs."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import logging
import os
import pickle
import signal
import socket
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from multiprocessing.context import ForkServerProcess
from typing import Any

from penstock.config.errors import PenstockError
from penstock.config.supervision import describe_exit, is_alive
from penstock.ledger.rows.attempts import in_mebibytes
from penstock.ledger.transitions.outcome import FenceLost
from penstock.workers.executor.attempt.child.logs import handle_record
from penstock.workers.executor.attempt.child.messages import FromChild, Raised, Returned
from penstock.workers.executor.attempt.child.pipe import TooLarge, WorkerEnd
from penstock.workers.executor.attempt.errors import ChildDied, ChildFailed, ChildTerminated, Terminated
from penstock.workers.executor.attempt.memory import peak_memory
from penstock.workers.executor.attempt.outcome import JsonResult
from penstock.workers.handlers.context import Context
from penstock.workers.handlers.returns import error_line

log = logging.getLogger("penstock.executor")

_LOOK_SECONDS = 0.2
"""Between two looks at a child's memory."""
KILL_AFTER_SECONDS = 2.0
"""Between SIGTERM and SIGKILL for a child that must stop."""
_REST_SECONDS = 10.0
"""How long the rest of a dead child's messages is read, if a process that left its session has the pipe open."""
_BURST, _PAUSE_SECONDS = 100, 0.01
"""A child that sends more messages at a time than this waits: the loop has others to serve."""
_READ_RESULT = 2**20
"""Bytes of a result that is read, to see whether it is JSON: a larger one would take too long."""
_UNKNOWN_EXIT = 255
"""Exit code that multiprocessing reports also where the fork server died and no one knows the child's."""


class Child:
    """A child process, and the exchange that is under way: a request to it, its messages, its answer.

    Arguments:
        messages: what it sends.
        processes: the thread for calls of multiprocessing.

    Attributes:
        pid: its process.
        pipe: this end of it.
        answer: of the exchange; None: it has not answered.
        answer_result: the JSON of the result that came with the answer; empty if none did.
        begun_at: when it reported that it calls the handler, by the loop's clock; 0 before.
        death: the task that ends when it has died.
    """

    def __init__(
        self, process: ForkServerProcess, messages: type[FromChild[Any]], processes: ThreadPoolExecutor
    ) -> None:
        assert process.pid is not None
        self.pid = process.pid
        self.pipe = WorkerEnd(self._receive, self._on_closed)
        self._process, self._messages, self._processes = process, messages, processes
        self._exit_code: int | None = None
        self._peak: int | None = None
        self._failed: str | None = None
        self._ended = False
        self._waiter: asyncio.Future[None] | None = None
        self._writing: set[asyncio.Task[None]] = set()
        self.begin(None)

    async def open(self, connection: socket.socket) -> None:
        """Use this end of the socket to it."""
        await self.pipe.open(connection)
        self.death = asyncio.ensure_future(self._follow())

    def begin(self, context: Context | None) -> None:
        """Begin an exchange, in the caller's context: what the child sends until its answer belongs to this attempt.

        Arguments:
            context: the attempt's; None: the exchange runs no job.
        """
        self._context, self._surroundings = context, copy_context()
        self.answer: Any = None
        self.answer_result = ""
        self.begun_at = 0.0
        self._count = 0

    async def has_ended(self, deadline: Callable[[], float | None]) -> bool:
        """Wait until it has answered or died. False: it did neither by then.

        Arguments:
            deadline: returns it, by the loop's clock, whenever it is asked; None: there is none.
        """
        loop = asyncio.get_running_loop()
        while not self._is_over:
            left = _LOOK_SECONDS if (until := deadline()) is None else min(_LOOK_SECONDS, until - loop.time())
            if left <= 0:
                return False
            self._waiter = waiter = loop.create_future()
            look = loop.call_later(left, self._wake)
            try:
                await waiter
            finally:
                look.cancel()
            if not self._is_over:
                self._peak = peak_memory(self.pid) or self._peak
        return True

    @property
    def succeeded(self) -> bool:
        """Whether the handler has returned."""
        return isinstance(self.answer, Returned)

    def result(self) -> Any:
        """The handler's result, of an exchange that is over. Raises ChildFailed."""
        answer = self.answer
        if answer is None:
            raise self.how_it_died()
        if isinstance(answer, Raised):
            error_type = _known_type(answer.bases)
            if error_type is Terminated:
                raise ChildTerminated(answer.error, answer.traceback)
            raise ChildFailed(answer.error, answer.traceback, error_type, answer.wait, answer.final)
        if self._context is not None:
            self._context.outgoing.extend(answer.outgoing)
        return JsonResult(self.answer_result) if self.answer_result else answer.control_flow()

    def send_signal(self, number: signal.Signals) -> None:
        """Signal the process, and none that it started."""
        if not self.death.done():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it, with all processes that it started; `end` follows."""
        self._kill(signal.SIGKILL)

    async def interrupt(self) -> bool:
        """Have what it runs end by SIGTERM, and wait a little for its answer. False: it must be killed."""
        self._kill(signal.SIGTERM)
        stop_by = asyncio.get_running_loop().time() + KILL_AFTER_SECONDS
        return await self.has_ended(lambda: stop_by) and self.answer is not None

    async def end(self, patience_seconds: float = KILL_AFTER_SECONDS) -> None:
        """End it, with all processes that it started. A second call does nothing.

        Arguments:
            patience_seconds: how long a child that has answered may take to end by itself.
        """
        if self._ended:
            return
        self._ended = True
        self.pipe.resume()
        if self.answer is not None:
            await asyncio.wait({self.death}, timeout=patience_seconds)
        if not self.death.done():
            self._kill(signal.SIGTERM)
            await asyncio.wait({self.death}, timeout=KILL_AFTER_SECONDS)
        self._kill(signal.SIGKILL)
        await asyncio.wait({self.death}, timeout=KILL_AFTER_SECONDS)
        if self._writing:
            await asyncio.wait(self._writing)
        self.death.cancel()
        await asyncio.gather(self.death, return_exceptions=True)
        self.pipe.close()
        with contextlib.suppress(ValueError):  # the kernel has not ended it yet
            await asyncio.get_running_loop().run_in_executor(self._processes, self._process.close)

    def _kill(self, number: signal.Signals) -> None:
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            if not self.death.done():  # it does not lead its session yet
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.pid, number)
        except PermissionError:
            log.warning("%s: a process of its child %d is another user's", self._subject, self.pid)

    @property
    def _subject(self) -> str:
        return "the pool" if self._context is None else f"job {self._context.job_id}"

    @property
    def _is_over(self) -> bool:
        """Whether there is an answer, or will be none."""
        return self.answer is not None or self.death.done() or (self.pipe.closed.done() and not self._writing)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _follow(self) -> None:
        """Wait for its death, and then for the rest of its messages."""
        loop, sentinel, ended = asyncio.get_running_loop(), self._process.sentinel, asyncio.Event()
        loop.add_reader(sentinel, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(sentinel)
        code = await loop.run_in_executor(self._processes, lambda: self._process.exitcode)
        if code == _UNKNOWN_EXIT and is_alive(self.pid):
            await asyncio.wait({self.pipe.closed})  # the fork server has died, and not the child
        else:
            self._exit_code = code
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)  # so that no process that it has left keeps the pipe open
        await asyncio.wait({self.pipe.closed}, timeout=_REST_SECONDS)
        asyncio.get_running_loop().call_soon(self._wake)  # once this task is done

    # Messages.

    def _on_closed(self, error: Exception | None) -> None:
        if error is not None and self.answer is None:
            # Nothing that it has sent is shown.
            reason = str(error) if isinstance(error, TooLarge) else type(error).__name__
            self._failed = f"wrote to its pipe something that is not a message: {reason}"
            log.error("%s: its child process %d %s", self._subject, self.pid, self._failed)
        self._wake()

    def _receive(self, body: bytes, result: bytes) -> None:
        """Take a message. Raises whatever it is that makes it none."""
        message = self._messages.model_validate_json(body)
        if (answer := message.answer) is not None:
            text = result.decode()
            if 0 < len(result) <= _READ_RESULT:
                json.loads(text)  # the ledger's rows hold nothing else
            if self.answer is not None:
                raise ValueError("a second answer")
            self.answer, self.answer_result = answer, text
            self._wake()
            return
        self._surroundings.run(self._take, message)
        self._count += 1
        if self._count % _BURST == 0:
            self.pipe.pause()
            asyncio.get_running_loop().call_later(_PAUSE_SECONDS, self._go_on)

    def _take(self, message: FromChild[Any]) -> None:
        context = self._context
        if message.log is not None:
            handle_record(message.log, {} if context is None else context.log_fields)
        elif message.started:
            self.begun_at = asyncio.get_running_loop().time()
        elif context is None:
            raise ValueError("a message of a job where none runs")
        elif message.progress is not None:
            context.progress(*message.progress)
        elif message.once is not None:
            self.pipe.pause()  # an honest child waits for the answer
            task = asyncio.ensure_future(self._write_effect(context, *message.once))
            self._writing.add(task)
            task.add_done_callback(self._on_written)
        else:
            raise ValueError("an empty message")

    def _on_written(self, task: asyncio.Task[None]) -> None:
        self._writing.discard(task)
        self._go_on()
        self._wake()

    def _go_on(self) -> None:
        if not self._writing:
            self.pipe.resume()

    async def _write_effect(self, context: Context, method: str, key: str, *argument: Any) -> None:
        """Write a record of `ctx.once` for the child, which waits for the answer."""
        try:
            once = context.once(key)
            records: Any = once.records
            answer = {"value": await once.write(lambda: getattr(records, method)(key, *argument))}
        except Exception as error:
            answer = {"raise": _as_known_to_child(error)}
        self.pipe.send(answer)

    # Its death.

    @property
    def death_report(self) -> str:
        """How it died, with the peak of its memory."""
        code = self._exit_code
        if self._failed is not None:
            how = self._failed
        elif code is None:
            how = "died; how is unknown, since its fork server had died, too"
        elif code < 0:
            how = f"was killed by {describe_exit(code)}"
            if -code == signal.SIGKILL:
                how += " (out of memory?)"
        else:
            how = f"ended with {describe_exit(code)} and no result"
        memory = "" if self._peak is None else f"; its peak memory when last looked at was {in_mebibytes(self._peak)}"
        return f"its child process {self.pid} {how}{memory}"

    def how_it_died(self) -> ChildFailed:
        """The death of a child that has not answered."""
        if self._failed is not None:
            return ChildFailed(self.death_report)
        if self._exit_code == -signal.SIGTERM:
            return ChildTerminated(self.death_report)
        return ChildDied(self.death_report)


def _known_type(bases: Iterable[tuple[str, str]]) -> type[BaseException] | None:
    """The nearest class of an error that this process knows. The policy's own are known; nothing is imported."""
    for module, name in bases:
        value: Any = sys.modules.get("__main__" if module == "__mp_main__" else module)
        for part in name.split("."):
            value = inspect.getattr_static(value, part, None)  # a module's own `__getattr__` may import
        if isinstance(value, type) and issubclass(value, BaseException):
            return value
    return None


def _as_known_to_child(error: Exception) -> Exception:
    """The error itself, or its text if it cannot cross: that of a database's driver, which the child may not know."""
    if isinstance(error, PenstockError | FenceLost):
        with contextlib.suppress(Exception):
            pickle.loads(pickle.dumps(error))  # noqa: S301
            return error
    return RuntimeError(error_line(error))
