"""Isolated handlers: each attempt in a child process, which can be killed and capped in memory.

Children are forked off a clean server process that has imported the handlers and nothing else has touched: no
threads, no connections. The job crosses as JSON, the result as a pickle.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from penstock.config.errors import PenstockError
from penstock.ledger.rows.attempts import in_mebibytes
from penstock.ledger.transitions.outcome import FenceLost
from penstock.schemas.jobs.job import Job
from penstock.schemas.jobs.kind import registry
from penstock.workers.executor.attempt.errors import ChildFailed, TimedOut
from penstock.workers.executor.attempt.memory import peak_memory
from penstock.workers.handlers.returns import JobCancelled, underlying_error

if TYPE_CHECKING:
    from penstock.config.settings import Settings
    from penstock.workers.handlers.context import Context
    from penstock.workers.handlers.registry import Handler

_LOOK_SECONDS = 0.2
"""Between two checks of the clock and of a request to stop."""
KILL_AFTER_SECONDS = 2.0
"""Between SIGTERM and SIGKILL for a child that must stop."""

_modules: tuple[str, ...] = ()
_settings: Settings | None = None


def prepare(modules: Sequence[str], settings: Settings) -> None:
    """Set the modules that a child must import to know the handlers. Called once, when a worker boots."""
    global _modules, _settings
    _modules, _settings = tuple(modules), settings
    # Imported once in the server that children are forked off: a child is there in milliseconds.
    multiprocessing.get_context("forkserver").set_forkserver_preload([__name__, "penstock.workers.cli", *modules])


async def run_in_child(handler: Handler, job: Job, context: Context, timeout: timedelta | None) -> Any:
    """Run a handler in a new process and return its result as JSON values.

    Raises:
        ChildFailed: it raised, ran out of memory or was killed; names the signal and its peak of memory.
        TimedOut: it took longer than `timeout`; it was killed.
    """
    spawn = multiprocessing.get_context("forkserver")
    ours, theirs = spawn.Pipe()
    modules = (*_modules, handler.function.__module__)
    request = {
        "kind": handler.kind.name,
        "job": job.model_dump_json(by_alias=True),
        "context": {
            "job_id": context.job_id,
            "attempt": context.attempt,
            "tenant": context.tenant,
            "key": context.key,
            "deadline": context.deadline and context.deadline.isoformat(),
            "fence": context.fence,
        },
        "tracked": context.tracked,
        "memory_bytes": handler.memory_bytes,
        "modules": modules,
        "settings": _settings,
    }
    process = spawn.Process(target=_child, args=(theirs, request), daemon=True)
    await asyncio.to_thread(process.start)
    theirs.close()
    loop = asyncio.get_running_loop()
    deadline = None if timeout is None else loop.time() + timeout.total_seconds()
    readable = asyncio.Event()
    loop.add_reader(ours.fileno(), readable.set)
    answer: dict[str, Any] | None = None
    answering: asyncio.Task[None] | None = None
    peak: int | None = None
    try:
        while answer is None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(readable.wait(), _LOOK_SECONDS)
            readable.clear()
            peak = peak_memory(process.pid) or peak
            if context.cancelled:
                raise JobCancelled(f"job {context.job_id} was asked to stop")
            if deadline is not None and loop.time() > deadline:
                raise TimedOut(f"took longer than its timeout of {timeout}; its process was killed")
            try:
                while answer is None and ours.poll():
                    message = ours.recv()
                    if "progress" in message:
                        context.progress(*message["progress"])
                    elif "once" in message:
                        answering = loop.create_task(_answer_once(ours, context, *message["once"]))
                    else:
                        answer = message
            except (EOFError, OSError):
                break  # it died
    finally:
        loop.remove_reader(ours.fileno())
        if answering is not None and not answering.done():
            await asyncio.wait({answering})
        await asyncio.to_thread(_end, process, answer is not None)
        ours.close()
    if answer is None:
        raise ChildFailed(_death(process.pid, process.exitcode, peak))
    if "error" in answer:
        raise ChildFailed(answer["error"], answer["traceback"], _known_type(answer["type"]), answer["wait"])
    context.outgoing.extend(answer["outgoing"])
    return answer["result"]


def _end(process: Any, finished: bool) -> None:
    if finished:
        process.join(KILL_AFTER_SECONDS)
    if process.is_alive():
        process.terminate()
        process.join(KILL_AFTER_SECONDS)
    if process.is_alive():
        process.kill()
        process.join()


def _death(pid: int | None, exit_code: int | None, peak: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        name = signal.Signals(-exit_code).name
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        how = f"was killed by {name}{hint}"
    else:
        how = f"ended with exit code {exit_code} and no result"
    memory = "" if peak is None else f"; its peak memory when last looked at was {in_mebibytes(peak)}"
    return f"its child process {pid} {how}{memory}"


def _known_type(pickled: bytes | None) -> type[BaseException] | None:
    with contextlib.suppress(Exception):  # defined where this process cannot find it
        if pickled is not None and isinstance(loaded := pickle.loads(pickled), type):  # noqa: S301  # from our own child
            return loaded
    return None


async def _answer_once(connection: Connection, context: Context, method: str, key: str, argument: Any) -> None:
    """Write the records of `ctx.once` for the child, which waits for the answer."""
    once = context.once(key)
    records: Any = once.records
    try:
        value = await once.write(lambda: getattr(records, method)(key, *argument))
        answer = {"value": value}
    except (PenstockError, FenceLost) as error:
        answer = {"raise": error}
    except Exception as error:  # of a database's driver, which may be unknown to the child
        answer = {"raise": RuntimeError(f"{type(error).__name__}: {error}")}
    with contextlib.suppress(OSError):  # it has died meanwhile
        connection.send(answer)


class _Pipe:
    """Carries a child's progress and the records of its effects to its parent."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._asking = threading.Lock()

    def progress(self, job_id: str, done: int, total: int | None, note: str | None) -> None:
        self._connection.send({"progress": (done, total, note)})

    def once(self, context: Context, key: str) -> Any:
        from penstock.workers.executor.attempt.once import Once

        return Once(context, key, self, lambda work: work())

    def begin(self, key: str, again: bool, at: datetime) -> Any:
        return self._ask("begin", key, again, at)

    def confirm(self, key: str, result: str | None) -> None:
        self._ask("confirm", key, result)

    def withdraw(self, key: str) -> None:
        self._ask("withdraw", key)

    def _ask(self, method: str, key: str, *argument: Any) -> Any:
        with self._asking:
            self._connection.send({"once": (method, key, argument)})
            answer = self._connection.recv()
        if "raise" in answer:
            raise answer["raise"]
        return answer["value"]


def _child(connection: Connection, request: dict[str, Any]) -> None:
    """Import, cap the memory, run and answer: the main function of a child."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    try:
        connection.send(asyncio.run(_run(connection, request)))
    except MemoryError:
        limit = request["memory_bytes"]
        _release_memory_cap()
        peak = f", with a peak of {in_mebibytes(size)}" if (size := peak_memory()) else ""
        text = f"MemoryError: over its memory cap of {limit} bytes{peak}"
        connection.send({"error": text, "traceback": None, "type": pickle.dumps(MemoryError), "wait": None})
    except BaseException as error:
        connection.send(_failure(error))
    finally:
        connection.close()
        sys.stdout.flush()
        os._exit(0)  # handlers' left-over threads must not keep the process


def _failure(error: BaseException) -> dict[str, Any]:
    from penstock.workers.handlers.retry_after import requested_wait

    cause, kind = underlying_error(error), None
    with contextlib.suppress(Exception):  # such as one that is defined in a function
        kind = pickle.dumps(type(cause))
    return {
        "error": f"{type(error).__name__}: {error}"[:2000],
        "traceback": "".join(traceback.format_exception(error))[-16_000:],
        "type": kind,
        "wait": requested_wait(cause, datetime.now(UTC)),
    }


async def _run(connection: Connection, request: dict[str, Any]) -> dict[str, Any]:
    from penstock.config.settings import Settings
    from penstock.workers.handlers.context import Context
    from penstock.workers.handlers.registry import handlers
    from penstock.workers.handlers.resources import Resources

    for module in request["modules"]:
        importlib.import_module(module)
    kind = registry[request["kind"]]
    handler = handlers.find(kind)
    assert handler is not None
    values = request["context"]
    deadline = values.pop("deadline")
    pipe = _Pipe(connection)
    context = Context(
        **values,
        deadline=None if deadline is None else datetime.fromisoformat(deadline),
        kind=kind.name,
        sink=pipe,
        open_once=pipe.once if request["tracked"] else None,
    )
    resources = Resources(request["settings"] or Settings())
    arguments: dict[str, Any] = {handler.context: context} if handler.context else {}
    for name, resource_type in handler.resources.items():
        arguments[name] = await resources.get(resource_type)
    job = kind.job.model_validate_json(request["job"])
    if request["memory_bytes"] is not None:
        _cap_memory(request["memory_bytes"])
    value = handler.function(job, **arguments)
    return {"result": value, "outgoing": context.outgoing}


def _cap_memory(allowed: int) -> None:
    """Allow this much beyond what the process has now."""
    import resource

    with open("/proc/self/statm") as statm:
        pages = int(statm.read().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + allowed
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _release_memory_cap() -> None:
    import resource

    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
