"""Children as their worker sees them: it starts them, follows them and ends them."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import logging
import multiprocessing
import os
import pickle
import signal
import socket
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.context import ForkServerProcess
from typing import TYPE_CHECKING, Any

from penstock.config.errors import PenstockError
from penstock.config.supervision import describe_exit, is_alive
from penstock.ledger.rows.attempts import in_mebibytes
from penstock.ledger.transitions.outcome import FenceLost
from penstock.producers.traces import current_traceparent
from penstock.workers.executor.attempt.attempt import Attempt
from penstock.workers.executor.attempt.child.environment import allowed
from penstock.workers.executor.attempt.child.logs import handle_record, levels
from penstock.workers.executor.attempt.child.main import Program, call_handler, main
from penstock.workers.executor.attempt.child.messages import FromChild, Raised, Returned
from penstock.workers.executor.attempt.child.pipe import Message, TooLarge, WorkerEnd
from penstock.workers.executor.attempt.child.server import VARIABLE
from penstock.workers.executor.attempt.errors import ChildFailed, ChildTerminated, NoChildProcess, TimedOut
from penstock.workers.executor.attempt.memory import peak_memory
from penstock.workers.executor.attempt.outcome import JsonResult
from penstock.workers.handlers.returns import error_line

if TYPE_CHECKING:
    from penstock.config.settings import Settings

log = logging.getLogger("penstock.executor")

_LOOK_SECONDS = 0.2
"""Between two looks at a child's memory."""
KILL_AFTER_SECONDS = 2.0
"""Between SIGTERM and SIGKILL for a child that must stop."""
_START_SECONDS = 30.0
"""How long the start of a child is tried again while the machine has no process or file descriptor left."""
_REST_SECONDS = 10.0
"""How long the rest of a dead child's messages is read, if a process that left its session has the pipe open."""
_BURST, _PAUSE_SECONDS = 100, 0.01
"""A child that sends more messages at a time than this waits: the loop has others to serve."""
_READ_RESULT = 2**20
"""Characters of a result that is read, to see whether it is JSON: a larger one would take too long."""
_UNKNOWN_EXIT = 255
"""Exit code that multiprocessing reports also where the fork server died and no one knows the child's."""

_PRELOADED = ("penstock.workers.cli", "penstock.workers.executor.attempt.suspects.main")

_modules: tuple[str, ...] = ()
_settings: Settings | None = None


def prepare(modules: Sequence[str], settings: Settings) -> None:
    """Set the modules that a child must import to know the handlers and what they need. Called once, when a worker
    boots."""
    global _modules, _settings
    _modules, _settings = tuple(modules), settings
    traces = [name for name in ("opentelemetry.trace",) if name in sys.modules]
    os.environ[VARIABLE] = json.dumps([sys.path, [*_PRELOADED, *traces, *modules]])
    preload = [main.__module__, "penstock.workers.executor.attempt.child.server"]
    multiprocessing.get_context("forkserver").set_forkserver_preload(preload)


class Children:
    """Runs attempts in child processes."""

    def __init__(self) -> None:
        # All calls of multiprocessing: two that ask for an exit code at a time lose it.
        self._processes = ThreadPoolExecutor(1, "penstock children")

    async def run(self, attempt: Attempt) -> Any:
        """Run the handler of an attempt in a new process, and return its result as JSON.

        Raises:
            ChildFailed: it raised, ran out of memory or was killed; names the signal and its peak of memory.
            TimedOut: it took longer than its kind's timeout; it was killed.
        """
        timeout = attempt.handler.kind.timeout
        loop = asyncio.get_running_loop()
        deadline = None if timeout is None else loop.time() + timeout.total_seconds()
        late = f"took longer than its timeout of {timeout}"
        try:
            async with asyncio.timeout_at(deadline) as clock:
                child = await self.start(attempt, call_handler, FromChild[Returned | Raised])
        except TimeoutError as error:
            if clock.expired():
                raise TimedOut(f"{late} before its process could be started") from error
            raise
        try:
            child.pipe.send(_isolated_request(attempt))
            if not await child.has_ended(lambda: deadline):
                raise TimedOut(f"{late}; its process was killed")
        except asyncio.CancelledError:
            await child.end()
            if not child.succeeded:  # in time after all
                raise
        finally:
            await child.end()
        return child.result()

    async def start(self, attempt: Attempt, program: Program, messages: type[FromChild[Any]]) -> Child:
        """Start a child, which waits for the request of the attempt.

        Arguments:
            messages: what the program sends, with its answer.

        Raises:
            NoChildProcess: the machine refused a process for half a minute.
        """
        loop = asyncio.get_running_loop()
        give_up_at, pause = loop.time() + _START_SECONDS, 0.1
        while True:
            try:
                return await self._try_to_start(attempt, program, messages)
            except (OSError, EOFError) as error:  # a limit of the machine, or the fork server was killed
                if loop.time() + pause > give_up_at:
                    raise NoChildProcess(f"no child process could be started: {error!r}") from error
                log.warning("job %s: no child process can be started yet: %r", attempt.context.job_id, error)
            await asyncio.sleep(pause)
            pause = min(pause * 2, 2.0)

    async def _try_to_start(self, attempt: Attempt, program: Program, messages: type[FromChild[Any]]) -> Child:
        ours, theirs = socket.socketpair()
        try:
            # Where this is cancelled the child finds that its pipe is closed, and ends.
            process = await asyncio.get_running_loop().run_in_executor(self._processes, _start_process, theirs, program)
            return Child(attempt, process, await WorkerEnd.open(ours), messages, self._processes)
        except BaseException:
            ours.close()
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


def request_for(attempt: Attempt) -> Message:
    """The part of a request that every program needs."""
    return {
        "kind": attempt.handler.kind.name,
        "job": attempt.claim.message.job.model_dump_json(by_alias=True),
        "modules": (*_modules, attempt.handler.function.__module__),
        "settings": _settings,
        "levels": levels(),
    }


def _isolated_request(attempt: Attempt) -> Message:
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
        "environment": allowed(os.environ, () if _settings is None else _settings.isolated_env),
    }


class Child:
    """A child process with the attempt that it runs.

    Attributes:
        pipe: this end of it.
        answer: None: it has not answered.
        answer_result: the JSON of the result that came with the answer; empty if none did.
        begun_at: when it reported that it calls the handler, by the loop's clock; 0 before.
    """

    def __init__(
        self,
        attempt: Attempt,
        process: ForkServerProcess,
        pipe: WorkerEnd,
        messages: type[FromChild[Any]],
        processes: ThreadPoolExecutor,
    ) -> None:
        assert process.pid is not None
        self.pipe, self._messages = pipe, messages
        self._attempt, self._context = attempt, attempt.context
        self._process, self._processes, self._pid = process, processes, process.pid
        self._exit_code: int | None = None
        self.answer: Any = None
        self.answer_result = ""
        self.begun_at = 0.0
        self._peak: int | None = None
        self._failed: str | None = None
        self._ended = False
        self._writing: set[asyncio.Task[None]] = set()
        self._reading = asyncio.ensure_future(self._read())
        self._death = asyncio.ensure_future(self._wait_for_death())

    async def has_ended(self, deadline: Callable[[], float | None]) -> bool:
        """Wait until it has answered or died. False: it did neither by then.

        Arguments:
            deadline: returns it, by the loop's clock, whenever it is asked; None: there is none.
        """
        clock = asyncio.get_running_loop().time
        while not self._reading.done():
            left = _LOOK_SECONDS if (until := deadline()) is None else min(_LOOK_SECONDS, until - clock())
            if left <= 0:
                return False
            await asyncio.wait({self._reading, self._death}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            self._peak = peak_memory(self._pid) or self._peak
            if self._death.done():
                self._kill(signal.SIGKILL)  # so that no process that it has left keeps the pipe open
                await asyncio.wait({self._reading}, timeout=_REST_SECONDS)
                break
        return True

    @property
    def succeeded(self) -> bool:
        """Whether the handler has returned."""
        return isinstance(self.answer, Returned)

    def result(self) -> Any:
        """The handler's result, of a child that has ended. Raises ChildFailed."""
        answer = self.answer
        if answer is None:
            raise self.how_it_died()
        if isinstance(answer, Raised):
            raise ChildFailed(answer.error, answer.traceback, _known_type(answer.bases), answer.wait)
        self._context.outgoing.extend(answer.outgoing)
        return JsonResult(self.answer_result) if self.answer_result else answer.control_flow()

    def kill(self) -> None:
        """Kill it, with all processes that it started; `end` follows."""
        self._kill(signal.SIGKILL)

    async def end(self) -> None:
        """End it, with all processes that it started. A second call does nothing."""
        if self._ended:
            return
        self._ended = True
        if self.answer is not None:
            await asyncio.wait({self._death}, timeout=KILL_AFTER_SECONDS)
        if not self._death.done():
            self._kill(signal.SIGTERM)
            await asyncio.wait({self._death}, timeout=KILL_AFTER_SECONDS)
        self._kill(signal.SIGKILL)
        await asyncio.wait({self._death, self._reading}, timeout=KILL_AFTER_SECONDS)
        if self._writing:
            await asyncio.wait(self._writing)
        self._death.cancel()
        self._reading.cancel()
        await asyncio.gather(self._death, self._reading, return_exceptions=True)
        self.pipe.close()
        with contextlib.suppress(ValueError):  # the kernel has not ended it yet
            await asyncio.get_running_loop().run_in_executor(self._processes, self._process.close)

    def _kill(self, number: signal.Signals) -> None:
        try:
            os.killpg(self._pid, number)
        except ProcessLookupError:
            if not self._death.done():  # it does not lead its session yet
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._pid, number)
        except PermissionError:
            log.warning("job %s: a process of its child %d is another user's", self._context.job_id, self._pid)

    async def _wait_for_death(self) -> None:
        loop, sentinel, ended = asyncio.get_running_loop(), self._process.sentinel, asyncio.Event()
        loop.add_reader(sentinel, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(sentinel)
        code = await loop.run_in_executor(self._processes, lambda: self._process.exitcode)
        if code == _UNKNOWN_EXIT and is_alive(self._pid):
            await asyncio.wait({self._reading})  # the fork server has died, and not the child
        else:
            self._exit_code = code

    async def _read(self) -> None:
        """Take the child's messages, until it has answered, closed its end, or sent what is not one of them."""
        count = 0
        try:
            while self.answer is None and (received := await self.pipe.receive()) is not None:
                await self._take(*received)
                if (count := count + 1) % _BURST == 0:
                    await asyncio.sleep(_PAUSE_SECONDS)
        except Exception as error:
            what = str(error) if isinstance(error, TooLarge) else type(error).__name__  # and nothing that it has sent
            self._failed = f"wrote to its pipe something that is not a message: {what}"
            log.error("job %s: its child process %d %s", self._context.job_id, self._pid, self._failed)

    async def _take(self, body: bytes, result: str) -> None:
        message = self._messages.model_validate_json(body)
        if message.log is not None:
            handle_record(message.log, self._context.log_fields)
        elif message.started:
            self.begun_at = asyncio.get_running_loop().time()
        elif message.progress is not None:
            self._context.progress(*message.progress)
        elif message.once is not None:
            if self._writing:  # an honest child waits for the answer
                await asyncio.wait(self._writing)
            task = asyncio.ensure_future(self._write_effect(*message.once))
            self._writing.add(task)
            task.add_done_callback(self._writing.discard)
        else:
            if 0 < len(result) <= _READ_RESULT:
                json.loads(result)  # the ledger's rows hold nothing else
            self.answer, self.answer_result = message.answer, result
            if self.answer is None:
                raise ValueError("an empty message")

    async def _write_effect(self, method: str, key: str, *argument: Any) -> None:
        """Write a record of `ctx.once` for the child, which waits for the answer."""
        try:
            once = self._context.once(key)
            records: Any = once.records
            answer = {"value": await once.write(lambda: getattr(records, method)(key, *argument))}
        except Exception as error:
            answer = {"raise": _as_known_to_child(error)}
        self.pipe.send(answer)

    def how_it_died(self) -> ChildFailed:
        """The death of a child that has not answered."""
        code = self._exit_code
        died: type[ChildFailed] = ChildFailed
        if self._failed is not None:
            how = self._failed
        elif code is None:
            how = "died; how is unknown, since its fork server had died, too"
        elif code < 0:
            how = f"was killed by {describe_exit(code)}"
            if -code == signal.SIGKILL:
                how += " (out of memory?)"
            elif -code == signal.SIGTERM:
                died = ChildTerminated
        else:
            how = f"ended with {describe_exit(code)} and no result"
        memory = "" if self._peak is None else f"; its peak memory when last looked at was {in_mebibytes(self._peak)}"
        return died(f"its child process {self._pid} {how}{memory}")


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
