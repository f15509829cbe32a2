"""`Pool`: processes that live long, and run a job each, one after the other.

They are forked off the server of all children, after it has imported the handlers. A process has no connection to the
broker or the ledger: its worker has them, and one pipe to each process.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from penstock.workers.executor.attempt.attempt import Attempt
from penstock.workers.executor.attempt.child.messages import FromChild, Raised, Returned
from penstock.workers.executor.attempt.child.parent import Children, TimeLimits, call_request, exchange, load_request
from penstock.workers.executor.attempt.child.process import Child
from penstock.workers.executor.attempt.child.serve import serve
from penstock.workers.executor.attempt.errors import ChildCrashed, ChildDied, NoChildProcess, TimedOut
from penstock.workers.executor.attempt.memory import WearLimits
from penstock.workers.executor.runtime.loop_thread import Tasks

if TYPE_CHECKING:
    from penstock.config.settings import Settings

log = logging.getLogger("penstock.executor")

_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 10.0
"""Seconds between a process that died before it was ready and the start of the next one."""
_CLOSING_SECONDS = 3.0
"""How long a process that ends may take to close its resources."""


@dataclass(eq=False, slots=True)
class Member:
    """A process of the pool.

    Attributes:
        limits: the jobs and the memory after which it is replaced.
        jobs: those that it has run.
        is_busy: it runs a job now.
        is_worn: it has reached a limit, and works until its successor is ready.
    """

    child: Child
    limits: WearLimits
    jobs: int = 0
    is_busy: bool = False
    is_worn: bool = False


class Pool:
    """The processes of a worker's pool. All on its loop.

    Arguments:
        children: starts them.
        size: returns how many there are to be.
        kinds: the kinds whose handlers run here; what those ask for is opened before the first job.
        eager: there are always so many; False: a process is started when a job needs it.

    Attributes:
        is_opening: the first processes are not ready yet.
    """

    def __init__(
        self,
        children: Children,
        settings: Settings,
        *,
        size: Callable[[], int],
        kinds: Sequence[str],
        eager: bool,
    ) -> None:
        self._children, self._settings = children, settings
        self._size, self._kinds, self.eager = size, tuple(kinds), eager
        self._tasks = Tasks(log)
        self._starts: set[asyncio.Task[None]] = set()
        self._members: set[Member] = set()
        self._idle: list[Member] = []
        self._waiting: deque[asyncio.Future[Member]] = deque()
        self._starting = self._failures = 0
        self._closed = self.is_opening = False

    # For the attempts.

    async def run(self, attempt: Attempt) -> Any:
        """Run the handler of an attempt in a process that has no other, waiting for one. Returns its result as JSON.

        Raises:
            ChildFailed: it raised. ChildCrashed: its process died; names the signal and its peak of memory.
            NoChildProcess: no process could be started.
            TimedOut: it took longer than its timeout, which counts from when it has a process.
        """
        member = await self._acquire()
        child, message = member.child, attempt.claim.message
        kind, timeout, soft_timeout = message.kind, message.timeout, message.soft_timeout
        if timeout is not kind.timeout or soft_timeout is not kind.soft_timeout:  # those of the message alone
            kind = replace(kind, timeout=timeout, soft_timeout=soft_timeout)
        limits = TimeLimits(kind)
        if timeout is not None:
            attempt.context.deadline = datetime.now(UTC) + timeout
        try:
            if not await exchange(child, attempt, call_request(attempt), limits):
                answered = await child.interrupt()
                raise TimedOut(limits.late if answered else f"{limits.late}; its process was killed")
        except asyncio.CancelledError:
            await child.interrupt()
            if not child.succeeded:  # in time after all
                raise
        finally:
            if child.answer is None:
                await child.end()
            self._release(member)
        try:
            return child.result()
        except ChildDied as death:
            raise ChildCrashed(str(death)) from None

    async def _acquire(self) -> Member:
        member = self._idle.pop() if self._idle else await self._wait()
        while member not in self._members:  # it has died meanwhile
            self._tasks.spawn(self._report_idle(member))
            member = await self._wait()
        member.is_busy = True
        return member

    async def _wait(self) -> Member:
        future: asyncio.Future[Member] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        self._fill()
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                self._offer(future.result())
            raise

    def _release(self, member: Member) -> None:
        """Take a process back from its attempt."""
        member.jobs += 1
        member.is_busy = False
        if member not in self._members:  # it has died
            return
        if not member.is_worn and (reason := member.limits.reason(member.jobs, member.child.pid)) is not None:
            member.is_worn = True
            log.info("process %d of the pool is replaced: %s", member.child.pid, reason)
            self._start_one()
        if self._is_surplus(member):
            self._retire(member)
        else:
            self._offer(member)

    def _offer(self, member: Member) -> None:
        """Give a process to the attempt that has waited longest, if any."""
        member.is_busy = False
        if member not in self._members:
            return
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                member.is_busy = True
                future.set_result(member)
                return
        self._idle.append(member)

    # Its processes.

    @property
    def pids(self) -> list[int]:
        """Pids of the processes that are ready."""
        return sorted(member.child.pid for member in list(self._members))

    def open(self, ready: Callable[[], None]) -> None:
        """Start the processes of an eager pool, and call `ready` when they are, or cannot be."""
        self.is_opening = True
        self._tasks.spawn(self._open(ready))

    async def _open(self, ready: Callable[[], None]) -> None:
        await asyncio.gather(*self._fill(), return_exceptions=True)
        self.is_opening = False
        ready()

    def adapt(self) -> None:
        """Follow a change of the size. A process that runs a job ends after it."""
        self._fill()
        self._trim()

    async def close(self) -> None:
        """End all processes."""
        self._closed = True
        for start in self._starts:
            start.cancel()
        for member in list(self._members):
            self._retire(member)
        await self._tasks.join()

    @property
    def _missing(self) -> int:
        """How many processes are to be started, besides those that start; below 0: so many are too many."""
        return self._size() - sum(not member.is_worn for member in self._members) - self._starting

    def _fill(self) -> list[asyncio.Task[None]]:
        """Start the processes that are missing: all, or those that attempts wait for."""
        missing = 0 if self._closed else self._missing
        if not self.eager:
            missing = min(missing, len(self._waiting) - self._starting)
        return [self._start_one() for _ in range(missing)]

    def _is_surplus(self, member: Member) -> bool:
        """Whether a process has a successor, or is one too many."""
        if not self._closed and not member.is_worn and len(self._members) <= self._size():
            return False
        fresh = sum(not other.is_worn for other in self._members)
        return self._closed or fresh > self._size() or (member.is_worn and fresh == self._size())

    def _trim(self) -> None:
        """End idle processes that are too many, first those that have a successor."""
        for member in sorted(self._idle, key=lambda member: not member.is_worn):
            if self._is_surplus(member):
                self._retire(member)

    def _start_one(self) -> asyncio.Task[None]:
        self._starting += 1
        start = self._tasks.spawn(self._start())
        self._starts.add(start)
        start.add_done_callback(self._starts.discard)
        return start

    async def _start(self) -> None:
        """Start a process, and offer it to the attempts once it is ready."""
        try:
            child = await self._ready_child()
        except NoChildProcess as error:
            self._start_later(error)
            return
        finally:
            self._starting -= 1
        self._failures = 0
        member = Member(child, WearLimits(self._settings))
        for end in (child.death, child.pipe.closed):
            end.add_done_callback(lambda _: self._on_end(member))
        self._members.add(member)
        self._offer(member)
        self._trim()

    async def _ready_child(self) -> Child:
        """A child that is warmed up. Raises NoChildProcess."""
        child = await self._children.start("the pool", serve, FromChild[Returned | Raised])
        try:
            child.begin(None)
            child.pipe.send(load_request() | {"kinds": self._kinds})
            await child.has_ended(lambda: None)
        finally:
            if child.answer is None:
                child.kill()
                await child.end()
        if child.answer is None:
            raise NoChildProcess(f"no process of the pool becomes ready: {child.death_report}")
        return child

    def _start_later(self, error: NoChildProcess) -> None:
        """Start another process in a while; an attempt that waits while there is none fails."""
        self._failures += 1
        log.error("%s", error)
        while self._waiting and not self._members:
            future = self._waiting.popleft()
            if not future.done():
                future.set_exception(error)
                break
        pause = min(_FIRST_PAUSE * 2**self._failures, _LONGEST_PAUSE)
        asyncio.get_running_loop().call_later(pause, self._fill)

    def _on_end(self, member: Member) -> None:
        """Replace a process that has ended, whatever ended it."""
        if member not in self._members:
            return
        self._members.discard(member)
        if not member.is_busy:
            self._idle.remove(member)
            self._tasks.spawn(self._report_idle(member))
        self._fill()

    async def _report_idle(self, member: Member) -> None:
        await member.child.end()
        log.warning("a process of the pool ended without a job, and is replaced: %s", member.child.death_report)

    def _retire(self, member: Member) -> None:
        """Let a process end that has no job, with its resources closed."""
        self._members.discard(member)
        if member in self._idle:
            self._idle.remove(member)
        member.child.pipe.send({})
        self._tasks.spawn(member.child.end(_CLOSING_SECONDS))
