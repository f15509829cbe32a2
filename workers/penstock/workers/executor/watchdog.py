"""The watchdog: it notices that a handler blocks the loop, says which, and keeps the worker's lease meanwhile."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

from penstock.config.errors import LedgerUnavailable
from penstock.config.logging import LINES
from penstock.config.supervision import faults, start_thread
from penstock.ledger.members import heartbeats
from penstock.workers.executor.admission import Admission
from penstock.workers.executor.attempt.attempt import Attempt
from penstock.workers.executor.attempt.memory import peak_memory
from penstock.workers.executor.claiming import Claiming
from penstock.workers.executor.runtime.runtime import Runtime

log = logging.getLogger("penstock.executor")

_LOOK_SECONDS = 0.5
_REPORTED_AFTER = (1.0, 10.0, 60.0, 600.0)
"""Seconds for which the loop is blocked when the log names who blocks it."""
_CLOCK_JUMP_SECONDS = 2.0
"""A look that comes so late shows that the whole process stood still; then no handler is to blame."""
_STUCK_SECONDS = 10.0
"""A loop, or a watchdog, that has done nothing for so long makes no progress."""
_CLOCK_CHANGE_SECONDS = 1.0
"""Between two looks a clock that is only adjusted gains or loses much less."""


class Watchdog:
    """Asks the loop for a sign of life from a thread of its own.

    While none comes, no job is fetched, what was fetched and has not started goes to other workers, and the
    watchdog renews the worker's lease: the jobs that run here still do, so none of them may be taken for abandoned.

    It renews the lease as well while the heartbeat waits behind a call to the ledger that takes long, such as a claim
    that waits for a lock.

    Where the broker counts releases, each delivery goes on a few times (`Delivery.may_go_on`): a handler that blocks
    again and again must not use up the count.

    Arguments:
        running: the attempts by the job's id.
        obey: gets the orders of a person's that come with a heartbeat.

    Attributes:
        blocked: whether the loop has not turned for a second.
    """

    def __init__(
        self,
        runtime: Runtime,
        admission: Admission,
        claiming: Claiming,
        running: Mapping[str, Attempt],
        obey: Callable[[str | None], None],
    ) -> None:
        self._runtime, self._admission, self._claiming = runtime, admission, claiming
        self._running, self._obey = running, obey
        self.blocked = False
        self._stopping = threading.Event()
        self._turned_at = self._looked_at = time.monotonic()
        self._blocked_since: float | None = None
        self._beat_at = 0.0
        self._beats = ThreadPoolExecutor(1, "penstock watchdog's beat")  # the ledger may not answer this either
        self._beating: Future[None] | None = None

    def problem(self) -> str | None:
        """Why the loop, or this watchdog, makes no progress; None: both do. Safe from any thread."""
        now, since = time.monotonic(), self._blocked_since
        if since is not None and now - since > _STUCK_SECONDS:
            return f"a handler has blocked the event loop for {now - since:.0f} s; the log has its job"
        if now - self._looked_at > _STUCK_SECONDS and not self._stopping.is_set():
            return f"the watchdog stopped {now - self._looked_at:.0f} s ago"
        return None

    def start(self) -> None:
        """Begin to watch. The loop runs already."""
        self._turned_at = self._looked_at = time.monotonic()
        start_thread("penstock watchdog", self._run, self._stopping)

    def stop(self) -> None:
        """Watch no more. Returns at once, from any thread."""
        self._stopping.set()

    def _turn(self) -> None:
        """On the loop: a sign of life."""
        self._turned_at = time.monotonic()

    def _run(self) -> None:
        asked_at = looked_at = time.monotonic()
        lead = clock_lead()
        answered = True
        reports = 0
        while not self._stopping.is_set():
            if answered:
                asked_at = time.monotonic()
            self._runtime.loop.call_soon(self._turn)  # each time: after a late look only a new answer counts
            if self._stopping.wait(_LOOK_SECONDS):
                return  # the threads for the broker may have ended
            now = time.monotonic()
            if now - looked_at > _CLOCK_JUMP_SECONDS:
                asked_at = now
            looked_at = self._looked_at = now
            lead = report_clock_change(lead)
            answered = self._turned_at >= asked_at
            if answered:
                if self.blocked:
                    log.warning("the event loop turns again")
                self._set_blocked(False)
                self._blocked_since = None
                reports = 0
                self._beat_for_heartbeat(now)
            elif now - asked_at >= _REPORTED_AFTER[0]:
                self._set_blocked(True)
                self._blocked_since = asked_at
                self._release(now - asked_at)
                if reports < len(_REPORTED_AFTER) and now - asked_at >= _REPORTED_AFTER[reports]:
                    reports += 1
                    self._report(now - asked_at)
                self._beat()

    def _set_blocked(self, blocked: bool) -> None:
        if blocked != self.blocked:
            self.blocked = blocked
            capacity = self._runtime.capacity
            if blocked:
                faults["event loop blocked"] += 1
                capacity.pause("blocked")
            else:
                capacity.resume("blocked")
            self._runtime.io.soon(partial(self._runtime.orders.set_blocked, blocked))

    def _release(self, seconds: float) -> None:
        """Release what has not started. At each look: a fetch may have been under way."""
        ready, deliveries = self._claiming.take_ready(seconds), self._admission.take_unstarted(seconds)
        if ready or deliveries:
            log.warning("%d jobs that have not started go to other workers", len(ready) + len(deliveries))
        if ready:
            self._runtime.io.soon(partial(self._claiming.release, ready))
        if deliveries:
            self._runtime.io.soon(partial(self._runtime.io.release_now, deliveries))

    def _report(self, seconds: float) -> None:
        frame = sys._current_frames().get(self._runtime.loop.thread_id or 0)
        stack = "".join(traceback.format_stack(frame)[-12:]) if frame is not None else ""
        log.error(
            "%s has blocked the event loop for %.0f s, and with it every coroutine of this worker; a handler that must "
            "block is a plain function, or has isolate=True. It is here:\n%s",
            self._blocking(),
            seconds,
            stack,
            extra=LINES,
        )

    def _blocking(self) -> str:
        task: asyncio.Task[object] | None = self._runtime.loop.current_task()
        for job_id, attempt in list(self._running.items()):
            if task is not None and attempt.task is task:
                return f"job {job_id} ({attempt.claim.message.kind.name})"
        return "code" if task is None else f"task {task.get_name()} of a handler"

    def _beat_for_heartbeat(self, now: float) -> None:
        if self._beating is not None:
            if not self._beating.done():
                return
            done, self._beating = self._beating, None
            done.result()  # its error is this thread's, which is supervised
        third = self._runtime.settings.lease_seconds / 3
        if self._runtime.io.waits_seconds >= third and now >= self._beat_at:
            self._beat_at = now + third
            self._beating = self._beats.submit(self._beat)

    def _beat(self) -> None:
        settings = self._runtime.settings
        try:
            answer = heartbeats.beat(
                self._runtime.database,
                self._runtime.name,
                lease=settings.lease,
                peak_memory_bytes=peak_memory(),
            )
        except LedgerUnavailable as error:
            log.debug("the watchdog cannot renew the worker's lease: %s", error)
        else:
            self._obey(answer.order)


def clock_lead() -> float:
    """Seconds that the machine's clock is ahead of the one that no one can set."""
    return time.time() - time.monotonic()


def report_clock_change(before: float) -> float:
    """Report that the machine's clock was set since the last look. Returns `clock_lead` of now.

    Leases and due times are on the database's clock, so this concerns only times that handlers and logs read here.
    """
    now = clock_lead()
    if abs(now - before) > _CLOCK_CHANGE_SECONDS:
        faults["clock changed"] += 1
        log.warning(
            "the clock of this machine went %s by %.1f s: it was set, or the machine was suspended; leases and due "
            "times are on the database's clock and do not change",
            "forward" if now > before else "back",
            abs(now - before),
        )
    return now
