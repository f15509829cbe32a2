"""`Context`: the surroundings of an attempt, for its handler."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from penstock.config.errors import InvalidJob
from penstock.config.log_fields import SCRUB
from penstock.ledger.sql.text import is_storable, storable
from penstock.producers.enqueue.options import check_options
from penstock.producers.traces import current_traceparent
from penstock.schemas.jobs.job import Job
from penstock.schemas.jobs.scrubbing import Scrub
from penstock.schemas.wire.codec import Envelope, encode
from penstock.workers.handlers.returns import JobCancelled

LONGEST_KEY = 255
"""The longest key of `ctx.once`, in characters."""
_LARGEST_COUNT = 2**63 - 1
_once_lock = threading.Lock()


class ProgressSink(Protocol):
    """Takes the progress of running jobs; the executor writes the latest of each every so often."""

    def progress(self, job_id: str, done: int, total: int | None, note: str | None) -> None: ...


class Context:
    """The surroundings of one attempt.

    Attributes:
        job_id: the job's id.
        attempt: its number, from 1.
        tenant, key: as the producer gave them, or None.
        queue, worker: where the job came from, and who runs it; None if that is not known.
        deadline: when the attempt is stopped by its timeout (aware), or None.
        enqueued_at: when the producer sent it.
        fence: the claim's number; 0 without a claim.
        scrub: replaces the values of the job's sensitive fields in a text.
        interrupt: interrupts the function of an adopted task when a person cancels the job; None: it runs to its end.
    """

    interrupt: Callable[[], None] | None = None
    _once_running: frozenset[str] = frozenset()

    def __init__(
        self,
        *,
        job_id: str,
        attempt: int = 1,
        tenant: str | None = None,
        key: str | None = None,
        deadline: datetime | None = None,
        enqueued_at: datetime | None = None,
        kind: str = "",
        queue: str | None = None,
        worker: str | None = None,
        sink: ProgressSink | None = None,
        traceparent: str | None = None,
        open_session: Callable[[], Any] | None = None,
        open_once: Callable[[Context, str], Any] | None = None,
        fence: int = 0,
        scrub: Scrub = str,
    ) -> None:
        self.job_id = job_id
        self.attempt = attempt
        self.tenant = tenant
        self.key = key
        self.deadline = deadline
        self.enqueued_at = enqueued_at or datetime.now(UTC)
        self.kind = kind
        self.queue, self.worker = queue, worker
        self._traceparent = traceparent
        self._sink, self.scrub = sink, scrub
        self._open_session = open_session
        self._open_once = open_once
        self.fence = fence
        self._session: Any = None
        self._cancelled = False
        self._stop_error: Exception | None = None
        self._outgoing: list[Envelope] = []
        self._stop_calls: list[Callable[[], None]] = []

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger that names the job in every line, also in threads of the handler's own."""
        fields = self.log_fields if self.scrub is str else self.log_fields | {SCRUB: self.scrub}
        return logging.LoggerAdapter(logging.getLogger(f"penstock.job.{self.kind}"), fields)

    @property
    def log_fields(self) -> dict[str, Any]:
        """The job's fields on a line of the log, without those that are None."""
        names = ("job_id", "attempt", "kind", "queue", "tenant", "worker")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def progress(self, done: int, total: int | None = None, note: str | None = None) -> None:
        """Report how far the job is. Cheap: only the latest value is written, every half second.

        Arguments:
            done, total: integers from 0 to 2⁶³ - 1.
            note: text; one over 255 characters is cut, and says so.

        Raises:
            TypeError: one is of another type. ValueError: a number is out of its range.
        """
        _check_count("done", done)
        if total is not None:
            _check_count("total", total)
        if note is not None and not isinstance(note, str):
            raise TypeError(f"ctx.progress: note must be text, not {type(note).__name__}; give str(…) of it")
        if self._sink is not None:
            note = None if note is None else self.scrub(note)
            self._sink.progress(self.job_id, int(done), None if total is None else int(total), storable(note, 255))

    def enqueue(
        self,
        job: Job,
        *,
        delay: timedelta | float | None = None,
        key: str | None = None,
        tenant: str | None = None,
    ) -> str:
        """Send another job, only if this attempt succeeds. Returns its id.

        The jobs are written with the outcome, and sent after it: a crash between loses none.

        Arguments:
            delay, key, tenant: as for a producer. Without a tenant it runs for that of this job.

        Raises:
            InvalidJob: the job or an option is wrong; KindError: its class has no kind.
        """
        if not isinstance(job, Job):
            raise InvalidJob(f"ctx.enqueue takes a Job, not {type(job).__name__}; make one from its class first")
        try:
            options = check_options({"delay": delay, "key": key, "tenant": tenant})
        except ValueError as error:
            raise InvalidJob(f"{job.kind().name}: {error}") from error
        wait = options.get("delay")
        envelope = encode(
            job,
            key=key,
            tenant=tenant if tenant is not None else self.tenant,
            due_at=None if wait is None else datetime.now(UTC) + wait,
            traceparent=current_traceparent() or self._traceparent,
        )
        self._outgoing.append(envelope)
        return envelope.id

    @property
    def session(self) -> Any:
        """A transaction in the ledger's database that commits together with "succeeded".

        A SQLAlchemy `Session` for a plain `def`, an `AsyncSession` for an `async def`. It is opened on first use,
        committed with the outcome if the handler returns a result, and rolled back otherwise; never commit it
        yourself. On SQLite it holds the one write lock until the handler returns, so use it last.

        Raises:
            RuntimeError: the handler runs in a process of its own or of the pool, or its kind has `track=False`: this
                process's ledger has no outcome to commit with.
        """
        if self._session is None:
            if self._open_session is None:
                raise RuntimeError(
                    "ctx.session is for tracked kinds whose handler does not run in a process of its own or of the pool"
                )
            self._session = self._open_session()
        return self._session

    def once(self, key: str) -> Any:
        """An effect outside the database that must not happen twice, such as a payment.

            receipt = await ctx.once("charge").run(
                lambda effect_id: bank.charge(job.amount, idempotency_key=effect_id),
                ask=lambda effect_id: bank.find(effect_id),
            )

        In a plain `def` the same without `await`. The ledger has the effect on record before it is called, and again
        once it has happened; from then on its recorded result is returned and nothing is called. Where an earlier run
        was cut short in between, `ask` is called: its answer is the result, and None means that the effect did not
        happen, so it is called now. An effect that raises may have happened, unless it raises `NotDone`.

        Arguments:
            key: names the effect within its job, at most 255 characters.

        `run` takes two functions of the effect's id, a UUID that is the same each time: give it to the provider as the
        idempotency key. It returns the result as JSON values, the first time too.

        Raises:
            InDoubt: (from `run`) an earlier run was cut short and `ask` is not set. Not caught, it makes the job a
                dead letter.
            FenceLost: (from `run`) another worker has the job by now; nothing was called.
            RuntimeError: the kind has `track=False`, or the effect is running already.
        """
        if not key or len(key) > LONGEST_KEY:
            raise ValueError(f"ctx.once({key[:40]!r}): the key must have 1 to {LONGEST_KEY} characters")
        if not is_storable(key):
            raise ValueError(f"ctx.once({key!r}): the key holds a NUL or half of a character, which no database takes")
        if self._open_once is None:
            raise RuntimeError("ctx.once is for tracked kinds: it needs the job's row in the ledger")
        return self._open_once(self, key)

    @contextlib.contextmanager
    def running_once(self, key: str) -> Iterator[None]:
        """Refuse the same effect twice at a time within one attempt: the second would look cut short."""
        with _once_lock:
            if key in self._once_running:
                raise RuntimeError(f"ctx.once({key!r}) is running already in this attempt")
            self._once_running |= {key}
        try:
            yield
        finally:
            with _once_lock:
                self._once_running -= {key}

    @property
    def opened_session(self) -> Any:
        """The session if it was used, else None. For the executor."""
        return self._session

    @property
    def cancelled(self) -> bool:
        """Whether the job was cancelled, its time is up, or the worker must stop: a thread should end its work."""
        return self._cancelled

    def check_cancelled(self) -> None:
        """Raises JobCancelled if `cancelled`, or SoftTimeLimitExceeded if that is why; for the loops of threads."""
        if self.cancelled:
            raise self._stop_error or JobCancelled(f"job {self.job_id} was asked to stop")

    def cancel(self, error: Exception | None = None) -> None:
        """Make `cancelled` true. The executor calls this.

        Arguments:
            error: what `check_cancelled` raises from now on; None: JobCancelled.
        """
        self._cancelled, self._stop_error = True, error
        for call in tuple(self._stop_calls):
            call()

    @contextlib.contextmanager
    def when_cancelled(self, call: Callable[[], None]) -> Iterator[None]:
        """Call a function as soon as `cancelled` becomes true within the block; at once if it is true already.

        Arguments:
            call: returns at once, such as `Event.set`; it runs on the worker's loop or in a signal handler.
        """
        self._stop_calls.append(call)
        try:
            if self._cancelled:
                call()
            yield
        finally:
            self._stop_calls.remove(call)

    @property
    def tracked(self) -> bool:
        """Whether the job has a row in the ledger that this attempt holds."""
        return self._open_once is not None

    @property
    def outgoing(self) -> list[Envelope]:
        """The envelopes of `enqueue`, to be sent if the attempt succeeds."""
        return self._outgoing

    def __repr__(self) -> str:
        return f"Context(job_id={self.job_id!r}, attempt={self.attempt})"


def _check_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"ctx.progress: {name} must be an integer, not {value!r}; round it, or count in smaller units")
    if not 0 <= value <= _LARGEST_COUNT:
        raise ValueError(f"ctx.progress: {name} must lie between 0 and 2**63 - 1")
