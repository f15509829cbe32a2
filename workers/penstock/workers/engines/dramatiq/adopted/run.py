"""The run of an actor: by `process_message` of Dramatiq's own worker thread, inside an attempt of ours."""

from __future__ import annotations

import contextlib
import threading
import time
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import dramatiq
from dramatiq.broker import MessageProxy
from dramatiq.middleware import Interrupt, Middleware, Retries, SkipMessage, TimeLimit
from dramatiq.middleware.threading import raise_thread_exception
from dramatiq.worker import WorkerThread

from penstock.config.errors import BrokerUnavailable
from penstock.config.settings import Settings
from penstock.producers.contrib.dramatiq import DirectSending
from penstock.schemas.jobs.kind import Priority
from penstock.schemas.wire.codec import Envelope
from penstock.workers.engines.dramatiq.adopted.job import ActorJob
from penstock.workers.executor.attempt.errors import Terminated
from penstock.workers.executor.attempt.outcome import adopted_result, traceback_of
from penstock.workers.handlers.context import Context
from penstock.workers.handlers.returns import Discard, JobCancelled, Resend, as_final, error_line

_ABSORB_SECONDS = 0.05
"""How long a thread waits for an exception that the time limit may be about to raise in it."""


class Stopped(Terminated, Interrupt):
    """Raised in an actor whose job is cancelled. In a process, also if that must end."""


@dataclass(slots=True)
class _Run:
    """A message that is being processed.

    Attributes:
        thread: runs the actor now; None: no one does.
        lock: guards the thread, which must not be interrupted after the actor.
        cancelled: a person has cancelled the job.
        succeeded: the actor has returned, and the middleware's hooks follow.
        result: what the actor has returned.
        resent: the message under the same id, with the wait before it, if one was enqueued.
        skipped: why a middleware skipped the message.
        error: the exception that the message ended with.
        unsent: the error of a message that a middleware failed to enqueue after the actor had returned.
    """

    ctx: Context
    thread: int | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)
    cancelled: bool = False
    succeeded: bool = False
    result: Any = None
    resent: tuple[Envelope, timedelta] | None = None
    skipped: str | None = None
    error: BaseException | None = None
    unsent: Exception | None = None

    def interrupt(self) -> None:
        """Raise `Stopped` in the actor, as Dramatiq's own middleware interrupts one."""
        with self.lock:
            self.cancelled = True
            if self.thread is not None:
                raise_thread_exception(self.thread, Stopped)  # type: ignore[no-untyped-call]


_current: ContextVar[_Run | None] = ContextVar("penstock_actor", default=None)
"""Also in the coroutines of Dramatiq's event loop, which run in a copy of their actor's context."""


class ActorRunner(Middleware):
    """Runs the actors of an application's broker. It is the last of the broker's middleware, so that its own hooks are
    the first after an actor.

    Arguments:
        broker: the application's; its `enqueue` is replaced.
    """

    def __init__(self, broker: dramatiq.Broker, settings: Settings) -> None:
        self._broker = broker
        self._largest_result = settings.max_result_bytes_inline
        self._threads = threading.local()
        self._sending = _Sending(broker, settings)
        self._time_limits = [item for item in broker.middleware if isinstance(item, TimeLimit)]
        self._sending.replace_enqueue()
        broker.add_middleware(self)

    def run(self, job: ActorJob, ctx: Context) -> Any:
        """Process the message of a job. Returns the actor's result as JSON, a `Resend` or a `Discard`.

        Raises:
            Exception: that of the actor, if its message was failed: the job is a dead letter.
            JobCancelled, Stopped: the actor was interrupted, and did not come to its end all the same.
        """
        message = MessageProxy(job.message(ctx))
        run = _Run(ctx)
        _current.set(run)  # the context is this call's own
        ctx.interrupt = run.interrupt
        began = time.monotonic()
        try:
            self._thread().process_message(message)
        except Stopped as stop:  # between the actor and the hooks after it
            run.error = stop
        finally:
            self._absorb_late_interrupt(message, began)
            _current.set(None)
        if isinstance(run.error, Stopped) and not run.cancelled:
            raise run.error
        if ctx.cancelled and (run.error is not None or run.resent is not None):
            raise JobCancelled(f"job {ctx.job_id} was asked to stop")
        if run.resent is not None:
            envelope, after = run.resent
            error = run.error
            reason, trace = ("", None) if error is None else (error_line(error), traceback_of(error))
            return Resend(envelope, after, error is not None, reason, trace)
        if (error := run.error or run.unsent) is not None:
            why = "what follows it could not be sent" if run.error is None else self._why_final(message, error)
            if not isinstance(error, Exception):  # such as TimeLimitExceeded
                raise as_final(RuntimeError(error_line(error)), why) from error
            raise as_final(error, why)
        if message.failed:
            raise RuntimeError("the message was failed by a middleware or by its actor, without an exception")
        if run.skipped is not None:
            return Discard(run.skipped)
        return adopted_result(run.result, self._largest_result, "what the actor returned is not kept here")

    def close(self) -> None:
        self._sending.close()

    def before_process_message(self, broker: dramatiq.Broker, message: MessageProxy) -> None:
        if (run := _current.get()) is not None:
            with run.lock:
                run.thread = threading.get_ident()
            if run.cancelled:
                raise Stopped

    def after_process_message(
        self, broker: dramatiq.Broker, message: MessageProxy, *, result: Any = None, exception: Any = None
    ) -> None:
        if (run := _current.get()) is not None:
            with run.lock:
                run.thread = None
            if exception is not None and run.ctx.cancelled:
                message.options["max_retries"] = None  # `Retries` must not say that they are exhausted
                if run.cancelled:
                    message.fail()
            run.result = result
            run.succeeded = exception is None and not message.failed

    def after_skip_message(self, broker: dramatiq.Broker, message: MessageProxy) -> None:
        if (run := _current.get()) is not None:
            run.skipped = "skipped by a middleware"

    def _why_final(self, message: MessageProxy, error: BaseException) -> str:
        """The reason why no middleware has enqueued a failed message again."""
        options = self._broker.get_actor(message.actor_name).options
        retries = next((item for item in self._broker.middleware if isinstance(item, Retries)), None)
        throws = message.options.get("throws") or options.get("throws")
        if retries is None:
            return "the broker has no Retries middleware"
        if throws and isinstance(error, throws):
            return f"{type(error).__name__} is among the actor's throws"
        if "retries" not in message.options or isinstance(error, SkipMessage):
            return "a middleware has failed the message"
        if options.get("retry_when", retries.retry_when) is not None:
            return "retry_when wants no further retry"
        most = message.options.get("max_retries", options.get("max_retries", retries.max_retries))
        return f"the actor's retries are exhausted: max_retries = {most}"

    def _thread(self) -> WorkerThread:
        """Dramatiq's thread object for this thread of ours. It is not started."""
        thread: WorkerThread | None = getattr(self._threads, "thread", None)
        if thread is None:
            ends: Any = _Ends(self._broker)
            thread = self._threads.thread = WorkerThread(
                broker=self._broker, consumers=ends, work_queue=ends, worker_timeout=1000
            )
            self._broker.emit_after("worker_thread_boot", thread)
        return thread

    def _absorb_late_interrupt(self, message: MessageProxy, began: float) -> None:
        """Wait where the time limit passed as the actor ended: its exception must not hit the thread's next job."""
        limits = [_limit_of(self._broker, message, item) for item in self._time_limits]
        if limits and time.monotonic() - began >= min(limits) / 1000:
            with contextlib.suppress(Interrupt):
                time.sleep(_ABSORB_SECONDS)


class _Sending(DirectSending):
    """Captures the message that runs if it is enqueued again, as `Retries` does, and sends all others at once.

    What a middleware enqueues after an actor has returned, as pipelines and callbacks are, becomes part of the outcome
    if the broker is unavailable.
    """

    def enqueue(self, message: Any, *, delay: int | None = None) -> Any:
        run = _current.get()
        try:
            return super().enqueue(message, delay=delay)
        except Exception as error:
            if run is not None and run.succeeded:
                run.unsent = error  # Dramatiq logs it and goes on, and the message would be lost
            raise

    def deliver(self, message: Any, priority: Priority, due_at: datetime | None) -> None:
        run = _current.get()
        if run is not None and message.message_id == run.ctx.job_id:
            after = timedelta(0) if due_at is None else max(due_at - datetime.now(UTC), timedelta(0))
            run.resent = self.envelope(message, priority, None), after
            return
        try:
            super().deliver(message, priority, due_at)
        except BrokerUnavailable:
            if run is None or not run.succeeded:
                raise
            run.ctx.outgoing.append(self.envelope(message, priority, due_at))


def _limit_of(broker: dramatiq.Broker, message: MessageProxy, middleware: TimeLimit) -> float:
    """The time limit of a message, in milliseconds, as the middleware determines it."""
    limit = message.options.get("time_limit") or broker.get_actor(message.actor_name).options.get("time_limit")
    return float(middleware.time_limit if limit is None else limit)


class _Ends:
    """Stand-in for the consumers and the queue of Dramatiq's worker thread, which it calls at the end of a message."""

    def __init__(self, broker: dramatiq.Broker) -> None:
        self._broker = broker

    def __getitem__(self, queue_name: str) -> _Ends:
        return self

    def post_process_message(self, message: MessageProxy) -> None:
        """Run the hooks around an acknowledgement. Ours follows when the outcome is on record."""
        if (run := _current.get()) is not None:
            run.error = message._exception
        event = "nack" if message.failed else "ack"
        try:
            self._broker.emit_before(event, message)
            self._broker.emit_after(event, message)
        except Exception:
            self._broker.logger.exception("a middleware failed around the %s of %s", event, message)

    def task_done(self) -> None: ...
