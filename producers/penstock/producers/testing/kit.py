"""`testing()`: what the app enqueues is caught, asked about, and run when the test says so."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from penstock.producers.enqueue.override import override_connections
from penstock.producers.testing.caught import CaughtJobs
from penstock.producers.testing.clock import Clock
from penstock.producers.testing.fakes import fake_connections
from penstock.producers.testing.jobs import Enqueued, Ran
from penstock.producers.testing.matching import JobMatcher, RunAt, describe
from penstock.producers.testing.runner import HandlerRunner
from penstock.schemas.jobs.durations import Duration
from penstock.schemas.jobs.job import Job
from penstock.schemas.jobs.kind import Priority

if TYPE_CHECKING:
    import sqlalchemy as sa
    from sqlalchemy.orm import Session, scoped_session

    from penstock.config.settings import Settings

T = TypeVar("T")


class testing:  # a class, since pytest would take an imported function of this name for a test
    """Catch what every producer of this process enqueues while the block runs.

    Arguments:
        settings: for handlers and schedules; None: as `penstock.toml` and the environment say, when they are first
            needed. Their URLs are not used: ledger, storage and mail are in a folder that ends with the block.
        inline: run each job, and what it enqueues, as soon as it is enqueued.
    """

    def __init__(self, settings: Settings | None = None, *, inline: bool = False) -> None:
        self._settings, self._inline = settings, inline
        self._stack = ExitStack()

    def __enter__(self) -> Kit:
        kit = Kit(self._settings, inline=self._inline)
        self._stack.callback(kit._close)
        self._stack.enter_context(override_connections(kit._connections))
        return kit

    def __exit__(self, *_: object) -> None:
        self._stack.close()


class Kit:
    """Held by a test; `testing()` and the fixture `penstock` make it."""

    def __init__(self, settings: Settings | None = None, *, inline: bool = False) -> None:
        self._clock = Clock()
        self._jobs = CaughtJobs(self._clock)
        self._runner = HandlerRunner(settings, self._jobs, self._clock, inline=inline)
        self._connections = fake_connections(self._jobs, self._runner, self._clock)

    @property
    def inline(self) -> bool:
        """Whether jobs are run as soon as they are enqueued; may be set."""
        return self._runner.inline

    @inline.setter
    def inline(self, value: bool) -> None:
        self._runner.inline = value

    # Jobs that are enqueued.

    def enqueued(
        self,
        job: type[Job] | Job | None = None,
        *,
        fields: Mapping[str, Any] | None = None,
        delay: Duration | None = None,
        run_at: RunAt | None = None,
        priority: Priority | None = None,
        queue: str | None = None,
        key: str | None = None,
        tenant: str | None = None,
        **values: Any,
    ) -> list[Enqueued]:
        """The jobs that wait, in the order of their enqueueing; what has run to its end is not among them.

        Arguments:
            job: only those of this class, or equal to this job.
            fields: values of fields that are named like an option, such as `key`.
            delay: from the enqueueing until it is due, as a timedelta or in seconds, give or take one; 0: none.
            run_at: when it is due, give or take a second; or the earliest and the latest time. Aware.
            values: of fields.

        Raises:
            TypeError: the class has no such field. ValueError: a time has no zone.
        """
        values = {**values, **(fields or {})}
        options = {"priority": priority, "queue": queue, "key": key, "tenant": tenant}
        matcher = JobMatcher(job, values, delay=delay, run_at=run_at, **options)
        return [enqueued for enqueued in self._jobs.waiting() if matcher.matches(enqueued)]

    def assert_enqueued(
        self,
        job: type[Job] | Job,
        *,
        count: int | None = None,
        fields: Mapping[str, Any] | None = None,
        delay: Duration | None = None,
        run_at: RunAt | None = None,
        priority: Priority | None = None,
        queue: str | None = None,
        key: str | None = None,
        tenant: str | None = None,
        **values: Any,
    ) -> Enqueued:
        """Fail unless such a job is enqueued; see `enqueued`. Returns it, the first where there are several.

        Arguments:
            count: how many there must be, no more and no fewer; None: at least one.
        """
        __tracebackhide__ = True
        options = {"priority": priority, "queue": queue, "key": key, "tenant": tenant}
        matcher = JobMatcher(job, {**values, **(fields or {})}, delay=delay, run_at=run_at, **options)
        if count is not None and count < 1:
            raise ValueError(f"count={count}: to say that there is none, use refute_enqueued")
        waiting = self._jobs.waiting()
        matching = [enqueued for enqueued in waiting if matcher.matches(enqueued)]
        if not matching or (count is not None and len(matching) != count):
            many = "no" if not matching else f"{len(matching)} instead of {count}"
            raise AssertionError(f"{many} {matcher} enqueued\n{describe(matcher, waiting, self._runner.ran)}")
        return matching[0]

    def refute_enqueued(
        self,
        job: type[Job] | Job | None = None,
        *,
        fields: Mapping[str, Any] | None = None,
        delay: Duration | None = None,
        run_at: RunAt | None = None,
        priority: Priority | None = None,
        queue: str | None = None,
        key: str | None = None,
        tenant: str | None = None,
        **values: Any,
    ) -> None:
        """Fail if such a job is enqueued; without a class, if any is. See `enqueued`."""
        __tracebackhide__ = True
        options = {"priority": priority, "queue": queue, "key": key, "tenant": tenant}
        matcher = JobMatcher(job, {**values, **(fields or {})}, delay=delay, run_at=run_at, **options)
        if matching := [enqueued for enqueued in self._jobs.waiting() if matcher.matches(enqueued)]:
            lines = "\n".join(f"  {enqueued}" for enqueued in matching)
            raise AssertionError(f"{len(matching)} {matcher} enqueued, and none was expected:\n{lines}")

    def take_outbox(self, session: Session | scoped_session[Any] | sa.Connection | str) -> list[Enqueued]:
        """Take over the jobs that a transaction of the app's sees in its outbox, as a dispatcher does with committed
        ones. Returns those that wait now.

        They leave the outbox in that transaction, so a test that rolls its own back in the end may leave it open. For
        an AsyncSession: `await session.run_sync(penstock.take_outbox)`. In Django name the alias of the database.
        """
        database = self._jobs.database
        from penstock.producers.testing.ledger import admit, take_outbox

        envelopes = admit(database, take_outbox(session))
        self._jobs.catch(envelopes)
        ids = {envelope.id for envelope in envelopes}
        return [enqueued for enqueued in self._jobs.waiting() if enqueued.id in ids]

    # Running them.

    def drain(self, *jobs: type[Job], raising: bool = True, limit: int = 1000) -> list[Ran]:
        """Run what is due with the real handlers, one after the other, and what that enqueues, until no job is due.

        Delayed jobs and schedules are due when `travel` has brought their time; a retry always waits for a `travel`.

        Arguments:
            jobs: only those of these classes; none: all.
            raising: an attempt that fails ends the drain with what its handler raised, and so does the method of a
                workflow's step; False: the job waits for its next attempt, or is dead, as its retry policy says.
            limit: of attempts.

        Raises:
            JobFailed: an attempt failed without an exception of its handler's, such as for want of a resource; or a
                workflow failed, such as for a result that does not fit the next step.
            KindError: a job has no handler. The handler's module must be imported.
            WaitTimeout: the limit is reached.
            ConfigError: penstock[workers] is not installed.
        """
        kinds = frozenset(job.kind().name for job in jobs)
        return self._runner.drain(kinds, raising=raising, limit=limit)

    def replace(self, resource: type[T], value: T) -> T:
        """Inject `value` where handlers ask for this resource, until the test ends. Returns it."""
        self._runner.replace(resource, value)
        return value

    # Time.

    @property
    def now(self) -> datetime:
        """Time of the test's clock: this machine's plus what was travelled. Handlers see only this machine's."""
        return self._clock.now

    def travel(
        self,
        by: timedelta | None = None,
        *,
        days: float = 0,
        hours: float = 0,
        minutes: float = 0,
        seconds: float = 0,
    ) -> None:
        """Let time pass for jobs: delays, retries, expiries, unique periods and schedules. `drain` runs what is due.

        Raises:
            ValueError: into the past, or nowhere.
        """
        by = (by or timedelta(0)) + timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
        if by <= timedelta(0):
            raise ValueError("travel() goes forward; say how far, such as travel(hours=1)")
        self._jobs.travel(by)

    def travel_to(self, time: datetime) -> None:
        """`travel` until a time of the test's clock, aware, or an hour of schedules such as tomorrow at three.

        Raises:
            ValueError: it is past, or has no time zone.
        """
        self.travel(self._clock.until(time))

    @property
    def database_url(self) -> str:
        """URL of this test's ledger, in SQLite: for the tables that handlers use through `ctx.session`."""
        return self._jobs.database.url

    def _close(self) -> None:
        self._runner.close()
        self._jobs.close()
