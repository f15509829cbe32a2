"""`testing()`: what the app enqueues is caught, asked about, and run when the test says so."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from penstock.config.errors import ConfigError
from penstock.producers.enqueue.options import Duration, Preparation
from penstock.producers.enqueue.producer import AsyncProducer, Producer
from penstock.producers.storage import Storage
from penstock.producers.testing.fakes import Ahead, AsyncCatcher, Catcher, Link
from penstock.producers.testing.jobs import Enqueued, Ran
from penstock.producers.testing.matching import RunAt, Wanted, describe
from penstock.producers.testing.patching import in_place_of
from penstock.schemas.jobs.job import Job
from penstock.schemas.jobs.kind import Priority
from penstock.schemas.wire.codec import Envelope, decode

if TYPE_CHECKING:
    import sqlalchemy as sa
    from sqlalchemy.orm import Session, scoped_session

    from penstock.config.settings import Settings
    from penstock.ledger.sql.database import Database
    from penstock.producers.testing.ledger import LentLedger

T = TypeVar("T")

GROUP = "penstock.testing"
"""The entry point of this group is what runs handlers: producers know no worker."""


class Runner(Protocol):
    """Runs jobs of a test's ledger with their handlers; `penstock.workers.testing` has the one there is."""

    def drain(
        self, kinds: frozenset[str], *, raising: bool, limit: int, reached: datetime, travelled_at: datetime | None
    ) -> Iterator[Ran]: ...

    def replace(self, wanted: type[T], value: T) -> None: ...

    def close(self) -> None: ...


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
        self._swap(kit, Producer, Catcher(kit))
        self._swap(kit, AsyncProducer, AsyncCatcher(kit))
        return kit

    def _swap(self, kit: Kit, producer: type[Producer | AsyncProducer], sender: Catcher | AsyncCatcher) -> None:
        stand_ins: dict[str, Callable[[Any], Any]] = {
            "_sender": lambda _: sender,
            "_ledger": lambda _: kit._link,
            "_preparation": kit._adjusted,
        }
        self._stack.enter_context(in_place_of(producer, stand_ins))

    def __exit__(self, *_: object) -> None:
        self._stack.close()


class Kit:
    """What a test holds; `testing()` and the fixture `penstock` make it.

    Attributes:
        inline: whether jobs are run as soon as they are enqueued; may be set.
    """

    def __init__(self, settings: Settings | None = None, *, inline: bool = False) -> None:
        self.inline = inline
        self._settings = settings
        self._opened_at = datetime.now(UTC)
        self._ahead = timedelta(0)
        self._travelled_at: datetime | None = None  # by this machine's clock
        self._reached = self._opened_at  # by the test's
        self._lock = threading.RLock()
        self._caught: dict[str, Envelope] = {}  # until there is a ledger
        self._order: dict[str, int] = {}
        self._lent: LentLedger | None = None
        self._link = Link(self)
        self._runner: Runner | None = None
        self._ran: list[Ran] = []
        self._draining = False

    # What is enqueued.

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
        wanted = Wanted(job, values, delay=delay, run_at=run_at, **options)
        return [one for one in self._waiting() if wanted.meets(one)]

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
        wanted = Wanted(job, {**values, **(fields or {})}, delay=delay, run_at=run_at, **options)
        if count is not None and count < 1:
            raise ValueError(f"count={count}: to say that there is none, use refute_enqueued")
        waiting = self._waiting()
        found = [one for one in waiting if wanted.meets(one)]
        if not found or (count is not None and len(found) != count):
            many = "no" if not found else f"{len(found)} instead of {count}"
            raise AssertionError(f"{many} {wanted} enqueued\n{describe(wanted, waiting, self._ran)}")
        return found[0]

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
        wanted = Wanted(job, {**values, **(fields or {})}, delay=delay, run_at=run_at, **options)
        if found := [one for one in self._waiting() if wanted.meets(one)]:
            lines = "\n".join(f"  {one}" for one in found)
            raise AssertionError(f"{len(found)} {wanted} enqueued, and none was expected:\n{lines}")

    def _waiting(self) -> list[Enqueued]:
        with self._lock:
            if self._lent is None:
                return [Enqueued.of_envelope(envelope) for envelope in self._caught.values()]
            from penstock.producers.testing.ledger import waiting

            found = [Enqueued.of_row(row, self._ahead) for row in waiting(self._lent.database)]
        last = len(self._order)
        return sorted(found, key=lambda one: (one.enqueued_at, self._order.get(one.id, last)))

    def take_outbox(self, session: Session | scoped_session[Any] | sa.Connection | str) -> list[Enqueued]:
        """Take over the jobs that a transaction of the app's sees in its outbox, as a dispatcher does with committed
        ones. Returns those that wait now.

        They leave the outbox in that transaction, so a test that rolls its own back in the end may leave it open. For
        an AsyncSession: `await session.run_sync(penstock.take_outbox)`. In Django name the alias of the database.
        """
        database = self._open()
        from penstock.producers.testing.ledger import admit, take_outbox

        taken = admit(database, take_outbox(session))
        self._catch(taken)
        ids = {envelope.id for envelope in taken}
        return [one for one in self._waiting() if one.id in ids]

    # Running it.

    def drain(self, *jobs: type[Job], raising: bool = True, limit: int = 1000) -> list[Ran]:
        """Run what is due with the real handlers, one after the other, and what that enqueues, until nothing is due.

        Delayed jobs and schedules are due when `travel` has brought their time; a retry always waits for a `travel`.

        Arguments:
            jobs: only those of these classes; none: all.
            raising: an attempt that fails ends the drain with what its handler raised; False: it waits for its next
                attempt, or is dead, as its retry policy says.
            limit: of attempts.

        Raises:
            JobFailed: an attempt failed without an exception of its handler's, such as for want of a resource.
            KindError: there is no handler for a job. Its module must be imported.
            WaitTimeout: the limit is reached.
            ConfigError: penstock[workers] is not installed.
        """
        with self._lock:
            if self._draining:
                raise RuntimeError("drain() is under way; what handlers enqueue is run by it")
            self._draining = True
        try:
            return self._drain(frozenset(job.kind().name for job in jobs), raising, limit)
        finally:
            self._draining = False

    def _drain(self, kinds: frozenset[str], raising: bool, limit: int) -> list[Ran]:
        ran: list[Ran] = []
        attempts = self._run().drain(
            kinds, raising=raising, limit=limit, reached=self._reached, travelled_at=self._travelled_at
        )
        for one in attempts:
            ran.append(one)
            self._ran.append(one)
        return ran

    def replace(self, resource: type[T], value: T) -> T:
        """Inject `value` where handlers ask for this resource, until the test ends. Returns it."""
        self._run().replace(resource, value)
        return value

    def _run(self) -> Runner:
        if self._runner is None:
            database = self._open()
            assert self._lent is not None
            self._runner = _load_runner()(self._for_handlers(), database, self._opened_at)
        return self._runner

    def _for_handlers(self) -> Settings:
        from penstock.config.settings import load_settings

        assert self._lent is not None
        folder = self._lent.folder
        return (self._settings or load_settings()).model_copy(
            update={
                "broker_url": "redis://a-test-has-no-broker.invalid:1/0",
                "database_url": self._lent.database.url,
                "storage_url": f"file:{folder}/storage",
                "smtp_url": f"maildir:{folder}/mail",
                "max_result_bytes_inline": 4 * 1024 * 1024,
                "hooks": {},  # nobody outside is told of a test's jobs
            }
        )

    # Time.

    @property
    def now(self) -> datetime:
        """What the test's clock says: this machine's, and what was travelled. Handlers see only this machine's."""
        return datetime.now(UTC) + self._ahead

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
        database = self._open()
        from penstock.producers.testing.ledger import age

        with self._lock:
            # Nobody's clock is touched. All that is on record becomes older, which comes to the same.
            age(database, by)
            self._ahead += by
            self._travelled_at = datetime.now(UTC)
            self._reached = self._travelled_at + self._ahead

    def travel_to(self, time: datetime) -> None:
        """`travel` until a time of the test's clock, aware, or an hour of schedules such as tomorrow at three.

        Raises:
            ValueError: it is past, or has no time zone.
        """
        if time.tzinfo is None:
            raise ValueError(f"travel_to {time.isoformat()}: it has no time zone; give an aware datetime")
        if (by := time - self.now) <= timedelta(0):
            raise ValueError(f"travel_to {time.isoformat()}: the test's clock says {self.now.isoformat()} already")
        self.travel(by)

    @property
    def database_url(self) -> str:
        """Of the ledger of this test, in SQLite: for the tables that handlers use through `ctx.session`."""
        return self._open().url

    # Behind the producers.

    def _adjusted(self, own: Preparation) -> Preparation:
        return own if not self._ahead else Ahead(own.max_bytes, own.queues, self._ahead)

    def _catch(self, envelopes: Sequence[Envelope]) -> None:
        for envelope in envelopes:
            decode(envelope)  # what no worker could read must not pass a test
        with self._lock:
            for envelope in envelopes:
                self._order.setdefault(envelope.id, len(self._order))
                if self._lent is None:
                    self._caught.setdefault(envelope.id, envelope)
            if self._lent is not None:
                self._enter(envelopes)

    def _run_inline(self) -> None:
        if self.inline and not self._draining:
            self.drain()

    def _open(self) -> Database:
        with self._lock:
            if self._lent is None:
                try:
                    from penstock.producers.testing.ledger import LentLedger
                except ModuleNotFoundError as error:
                    raise ConfigError(
                        "status, keys and time need a ledger, in a test too: install penstock[sql]"
                    ) from error

                self._lent = LentLedger.borrow()
                self._enter(list(self._caught.values()))
            return self._lent.database

    def _enter(self, envelopes: Sequence[Envelope]) -> None:
        from penstock.producers.testing.ledger import enter

        assert self._lent is not None
        enter(self._lent.database, envelopes)

    def _open_storage(self) -> Storage:
        from penstock.producers.storage import make_storage

        self._open()
        assert self._lent is not None
        return make_storage(f"file:{self._lent.folder}/storage")

    def _close(self) -> None:
        if self._runner is not None:
            self._runner.close()
        if self._lent is not None:
            self._lent.give_back()


@functools.cache
def _load_runner() -> Any:
    for found in entry_points(group=GROUP):
        try:
            return found.load()
        except ModuleNotFoundError as error:
            raise ConfigError(f"drain() runs handlers: install penstock[workers] ({error})") from error
    raise ConfigError(f"drain() finds no entry point in the group {GROUP}: install penstock anew")
