"""Breaking things: what may happen to a site, drawn from a seed."""

from __future__ import annotations

import random
import signal
import sqlite3
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence

from chaos_site import LEASE_SECONDS, Site
from support.servers.killable_redis import KillableRedis
from support.servers.rabbitmq_node import RabbitmqNode

Slots = list[subprocess.Popen[bytes] | None]


class Breaker:
    """Breaks one thing after the other in a thread of its own, and repairs all in the end.

    Arguments:
        pause: between two things, in seconds.
        first: names of the first breakages; default: a worker, a dispatcher and each server break once.
        wipes: how often the broker loses all it has, spread over `seconds`.

    Attributes:
        done: how often each thing happened.
    """

    def __init__(
        self,
        site: Site,
        seed: int,
        pause: tuple[float, float] = (0.1, 1.0),
        *,
        first: Sequence[str] = (),
        wipes: int = 0,
        seconds: float = 30.0,
    ) -> None:
        self.site = site
        self.done: Counter[str] = Counter()
        self.error: BaseException | None = None
        self._random = random.Random(seed)
        self._pause = pause
        self._wipes = [seconds * (number + 0.5) / wipes for number in range(wipes)]
        self._began = time.monotonic()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="breaker", daemon=True)
        self._acts: list[tuple[Callable[[], None], int]] = [
            (self.kill_worker, 5),
            (self.freeze_worker, 3),
            (self.restart_worker, 2),
            (self.kill_dispatcher, 2),
            (self.freeze_dispatcher, 1),
        ]
        if isinstance(site.broker_server, KillableRedis):
            self._acts += [(self.kill_redis, 2), (self.freeze_redis, 2), (self.kill_redis_and_worker, 2)]
        elif site.broker_server is not None:
            self._acts += [(self.kill_rabbitmq, 2)]
        if site.postgres is not None:
            self._acts += [(self.kill_database, 2), (self.kill_postmaster, 1), (self.kill_database_and_worker, 1)]
        elif site.settings.database_url.startswith("sqlite"):
            self._acts += [(self.lock_database, 2)]
        self._first = list(first) or self._one_of_each()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End, and leave everything running."""
        self._stopping.set()
        self._thread.join()
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        acts, weights = zip(*self._acts, strict=True)
        try:
            while not self._stopping.wait(self._random.uniform(*self._pause)):
                [act] = self._random.choices(acts, weights)
                if self._first:
                    act = getattr(self, self._first.pop(0))
                elif self._wipes and time.monotonic() > self._began + self._wipes[0]:
                    self._wipes.pop(0)
                    act = self.wipe_broker
                self.done[act.__name__] += 1
                act()
                self.site.revive()
        except BaseException as error:
            self.error = error

    def _one_of_each(self) -> list[str]:
        kills = ("kill_worker", "kill_dispatcher", "kill_redis", "kill_rabbitmq", "kill_database", "lock_database")
        names = [act.__name__ for act, _ in self._acts if act.__name__ in kills]
        self._random.shuffle(names)
        return names

    def kill_worker(self) -> None:
        slot = self._random.randrange(len(self.site.workers))
        _kill(self.site.workers, slot)
        self._sleep(0, 0.5)
        self.site.start_worker(slot)
        self._sleep(0.5, 3.0)  # a worker needs a second to start; killing it before says little

    def freeze_worker(self) -> None:
        """Longer than its lease or not: it comes back to jobs that others have taken over."""
        _freeze(self.site.workers, self._random, lambda: self._sleep(0.3, 2.5 * LEASE_SECONDS))

    def restart_worker(self) -> None:
        slot = self._random.randrange(len(self.site.workers))
        process = self.site.workers[slot]
        assert process is not None
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"a worker did not stop within a minute of SIGTERM: pid {process.pid}") from None
        self.site.start_worker(slot)

    def kill_dispatcher(self) -> None:
        slot = self._random.randrange(len(self.site.dispatchers))
        _kill(self.site.dispatchers, slot)
        self._sleep(0, 0.5)
        self.site.start_dispatcher(slot)

    def freeze_dispatcher(self) -> None:
        _freeze(self.site.dispatchers, self._random, lambda: self._sleep(0.3, 3.0))

    def kill_redis(self) -> None:
        self._redis.kill()
        self._sleep(0, 1.5)
        self._redis.start()

    def freeze_redis(self) -> None:
        process = self._redis.process
        assert process is not None
        process.send_signal(signal.SIGSTOP)
        self._sleep(0.2, 3.0)
        process.send_signal(signal.SIGCONT)

    def kill_redis_and_worker(self) -> None:
        """Redis first: acknowledgements of the worker meanwhile are lost."""
        slot = self._random.randrange(len(self.site.workers))
        self._redis.kill()
        self._sleep(0.1, 1.0)
        _kill(self.site.workers, slot)
        self._sleep(0, 0.5)
        self._redis.start()
        self.site.start_worker(slot)

    def kill_rabbitmq(self) -> None:
        """All of the node, as a power cut would; it takes some seconds to start."""
        node = self.site.broker_server
        assert isinstance(node, RabbitmqNode)
        node.kill()
        self._sleep(0, 2.0)
        node.start()

    def wipe_broker(self) -> None:
        """All it has is gone: FLUSHALL, or the queues deleted."""
        self.site.wipe()

    def kill_database(self) -> None:
        """PostgreSQL as after a crash: commits are recovered from its log."""
        assert self.site.postgres is not None
        self.site.postgres.stop()
        self._sleep(0, 5.0)
        self.site.postgres.start()

    def kill_postmaster(self) -> None:
        """Its first process alone, by SIGKILL; its sessions end by themselves, some in the middle of a commit."""
        assert self.site.postgres is not None
        self.site.postgres.kill_postmaster()
        self._sleep(0, 3.0)
        self.site.postgres.start()

    def kill_database_and_worker(self) -> None:
        assert self.site.postgres is not None
        slot = self._random.randrange(len(self.site.workers))
        self.site.postgres.stop()
        self._sleep(0.1, 2.0)
        _kill(self.site.workers, slot)
        self.site.start_worker(slot)  # it starts while the ledger is unavailable
        self._sleep(0, 3.0)
        self.site.postgres.start()

    def lock_database(self) -> None:
        """SQLite's one lock is held: by a backup, or a shell."""
        other = sqlite3.connect(self.site.folder / "ledger.db", timeout=60, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        self._sleep(0.2, 4.0)
        other.execute("COMMIT")
        other.close()

    @property
    def _redis(self) -> KillableRedis:
        assert isinstance(self.site.broker_server, KillableRedis)
        return self.site.broker_server

    def _sleep(self, least: float, most: float) -> None:
        time.sleep(self._random.uniform(least, most))


def _kill(slots: Slots, slot: int) -> None:
    process = slots[slot]
    assert process is not None
    process.kill()
    process.wait()


def _freeze(slots: Slots, chance: random.Random, wait: Callable[[], None]) -> None:
    process = slots[chance.randrange(len(slots))]
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    wait()
    process.send_signal(signal.SIGCONT)
