"""A steady load of jobs of every promise, and the rate at which they are done."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import sqlalchemy as sa
from asking import MIX, Asking, Call, Mix, plan
from chaos_jobs import Once, Parent
from chaos_site import Site
from misbehaving_kinds import Way

from penstock.ledger.sql.tables import jobs
from penstock.schemas.states import FINAL
from penstock.schemas.wire.ids import new_id

THREADS = 6
LONGEST_SECONDS = 300
MISBEHAVING = 500_000
"""Number of the first call for a handler that misbehaves."""
_LOOK_SECONDS = 0.2


class SteadyLoad:
    """A producer's threads, which make so many calls a second until they are stopped.

    Arguments:
        rate: calls a second.
        sessions_in_coroutines: whether the ledger's database has an asyncio driver.
    """

    def __init__(self, site: Site, seed: int, rate: float, *, sessions_in_coroutines: bool = True) -> None:
        mix: Mix = [each for each in MIX if sessions_in_coroutines or each[0] not in (Once, Parent)]
        self._rate, self._stopping = rate, threading.Event()
        self._planned = plan(seed, int(rate * LONGEST_SECONDS), mix)
        self._misbehaving: list[Call] = []
        self._asking = [Asking(site, share) for share in Asking.share(self._planned, THREADS)]
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        began = time.monotonic()
        for caller in self._asking:
            run = lambda caller=caller: caller.run(lambda number: began + number / self._rate, self._stopping)  # noqa: E731
            self._threads.append(threading.Thread(target=run, name="load", daemon=True))
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()
        for caller in self._asking:
            if caller.error is not None:
                raise caller.error

    def calls(self) -> list[Call]:
        """The calls that were made."""
        return [call for call in self._planned if call.began] + self._misbehaving

    @contextmanager
    def with_misbehaving(self, site: Site, ways: Mapping[str, Way], share: float) -> Iterator[None]:
        """Mix in jobs whose handlers misbehave: one for each way, and so many in each call."""
        caller = Asking(site, [])

        def mix_in() -> None:
            for number, (name, way) in enumerate(ways.items(), MISBEHAVING):
                call = Call(way.kind(number=number, way=name), new_id(), "normal")
                caller.ask(call)
                self._misbehaving.append(call)
                time.sleep(1 / (share * self._rate))

        thread = threading.Thread(target=mix_in, name="misbehaving", daemon=True)
        thread.start()
        yield
        thread.join()


class Progress:
    """How many jobs the ledger has as ended, and when.

    Arguments:
        admin_url: of the ledger, for a user whom no fault concerns.
    """

    def __init__(self, admin_url: str) -> None:
        self._engine = sa.create_engine(admin_url, pool_size=1, pool_pre_ping=True)
        self._samples: list[tuple[float, int]] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()
        self._engine.dispose()

    def is_steady(self, rate: float, window: float) -> bool:
        """Whether about as many jobs end as are enqueued, and no more: the start's backlog is done."""
        if not self._samples or self._samples[-1][0] - self._samples[0][0] < window:
            return False
        latest = self._samples[-1][0]
        return 0.6 * rate <= self.rate(latest - window, latest) <= rate

    def rate(self, begin: float, end: float) -> float:
        """Jobs a second that ended between two times."""
        return (self._at(end) - self._at(begin)) / (end - begin)

    def back_at(self, since: float, rate: float, window: float) -> float | None:
        """The first time since another from which a window has at least this rate; None: not yet."""
        for begin in itertools.takewhile(
            lambda begin: begin + window <= self._samples[-1][0],
            (since + step * _LOOK_SECONDS for step in itertools.count()),
        ):
            if self.rate(begin, begin + window) >= rate:
                return begin
        return None

    def _at(self, when: float) -> float:
        """The number at a time, between the samples on a line."""
        samples = self._samples
        after = next((index for index, (at, _) in enumerate(samples) if at >= when), len(samples) - 1)
        if after == 0:
            return samples[0][1]
        (early, few), (late, many) = samples[after - 1], samples[after]
        return few + (many - few) * min((when - early) / (late - early), 1.0)

    def _run(self) -> None:
        select = sa.select(sa.func.count()).where(jobs.c.state.in_(sorted(FINAL)))
        while not self._stopping.wait(_LOOK_SECONDS):
            try:
                with self._engine.connect() as connection:
                    count = int(connection.scalar(select) or 0)
            except sa.exc.DBAPIError:
                continue  # the fault concerns this user, too
            self._samples.append((time.monotonic(), count))


def wait_while(condition: Callable[[], bool], seconds: float) -> None:
    """Wait while it holds, for so long at most."""
    ends = time.monotonic() + seconds
    while condition() and time.monotonic() < ends:
        time.sleep(_LOOK_SECONDS)
