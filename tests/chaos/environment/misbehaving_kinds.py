"""Handlers that do what no handler should, and how each of their jobs must end."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from chaos_jobs import QUEUE, Chaotic

from penstock.schemas import RetryPolicy, State
from penstock.workers import Context, Permanent, handles

TWICE = RetryPolicy(max_attempts=2, first_delay=0.05)
BLOCKED_SECONDS = 3.0


class Misbehaving(Chaotic):
    """A base without a kind.

    Attributes:
        way: a name among `WAYS`.
    """

    way: str


class Misbehave(Misbehaving, kind="chaos.misbehave", queue=QUEUE, retry=TWICE):
    pass


class MisbehaveInThread(Misbehaving, kind="chaos.misbehaveinthread", queue=QUEUE, retry=TWICE):
    pass


class Swallow(Misbehaving, kind="chaos.swallow", queue=QUEUE, retry=TWICE, timeout=0.5):
    """Swallows its cancellation, for longer than its worker waits."""


class Unprintable(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")

    __repr__ = __str__


@dataclass(frozen=True)
class Way:
    """A way to misbehave.

    Attributes:
        kind: of the job.
        state: that the job must end in.
        error: a part of its error on record.
        log: a line that its worker must log.
        counter: of its worker, which must count it.
    """

    kind: type[Misbehaving]
    state: State
    error: str = ""
    log: str = ""
    counter: str = ""


WAYS = {
    "sys.exit": Way(Misbehave, State.DEAD, "SystemExit"),
    "sys.exit in a thread": Way(MisbehaveInThread, State.DEAD, "SystemExit"),
    "loop.stop": Way(Misbehave, State.SUCCEEDED, log="stopped the event loop", counter="event loop stopped"),
    "CancelledError": Way(Misbehave, State.DEAD, "CancelledError"),
    "StopIteration": Way(MisbehaveInThread, State.DEAD, "StopIteration"),
    "Permanent in a group": Way(Misbehave, State.DEAD, "ExceptionGroup: several"),
    "an error without text": Way(Misbehave, State.DEAD, "its __str__ raised ValueError"),
    "a result that JSON cannot hold": Way(Misbehave, State.DEAD, "is not a JSON value"),
    "blocking the loop": Way(
        Misbehave, State.SUCCEEDED, log="has blocked the event loop", counter="event loop blocked"
    ),
    "swallowing cancellation": Way(
        Swallow, State.DEAD, "TimedOut", log="did not stop when it was asked to", counter="handler left behind"
    ),
}
KILLERS = {
    way: Way(kind, State.DEAD, "crashed", log="runs in a process of its own")
    for way, kind in (("os._exit", Misbehave), ("SIGKILL", MisbehaveInThread), ("segfault", Misbehave))
}
"""Ways to end the process. Each is a fresh one, and takes a worker along."""


async def stop_the_loop() -> None:
    asyncio.get_running_loop().stop()
    await asyncio.sleep(0.05)


async def _raise(error: BaseException) -> None:
    raise error


async def _return_a_set() -> Any:
    return {object()}


async def _block() -> None:
    time.sleep(BLOCKED_SECONDS)  # noqa: ASYNC251


_COROUTINES: dict[str, Callable[[], Any]] = {
    "sys.exit": lambda: sys.exit(3),
    "loop.stop": stop_the_loop,
    "CancelledError": lambda: _raise(asyncio.CancelledError()),
    "Permanent in a group": lambda: _raise(ExceptionGroup("several", [KeyError("x"), Permanent("no")])),
    "an error without text": lambda: _raise(Unprintable()),
    "a result that JSON cannot hold": _return_a_set,
    "blocking the loop": _block,
    "os._exit": lambda: os._exit(3),
    "segfault": lambda: ctypes.string_at(0),
}


@handles(Misbehave)
async def misbehave(job: Misbehave) -> Any:
    return await _COROUTINES[job.way]()


@handles(MisbehaveInThread)
def misbehave_in_thread(job: MisbehaveInThread) -> None:
    if job.way == "StopIteration":
        next(iter([]))
    if job.way == "SIGKILL":
        os.kill(os.getpid(), signal.SIGKILL)
    sys.exit(3)


@handles(Swallow)
async def swallow(job: Swallow, ctx: Context) -> None:
    ends = time.monotonic() + 20
    while time.monotonic() < ends:
        try:
            await asyncio.sleep(0.1)
        except asyncio.CancelledError:
            continue
