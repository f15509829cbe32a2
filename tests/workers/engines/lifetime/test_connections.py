"""Connections of a worker process, idle and under a mixed load, as the kernel counts them."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import celery
import pytest
import redis
import sqlalchemy as sa
from mixed_jobs import KINDS
from support.ledgers import set_up
from support.polling import until
from support.servers.shared import broker_url, delete_queues
from support.stack import Stack

from penstock.ledger.sql.tables import jobs
from penstock.workers.local.up.redis_server import RedisServer

APPS = Path(__file__).parent.parent / "apps"
ESTABLISHED = "01"
LIMITS = {"redis": {"redis": 4, "ledger": 1}, "rabbitmq": {"rabbitmq": 2, "redis": 1, "ledger": 1}}
"""Connections of a process by its broker; with RabbitMQ the one to a Redis is for limits."""


def connections(pid: int, ports: dict[int, str]) -> Counter[str]:
    """Connections of a process to servers on these ports, by the server's name."""
    own = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # it was closed meanwhile
            own.add(os.readlink(descriptor))
    counts = Counter[str]()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            (
                _,
                _,
                remote,
                state,
                *_,
            ) = fields = line.split()
            name = ports.get(int(remote.rpartition(":")[2], 16))
            if name is not None and state == ESTABLISHED and f"socket:[{fields[9]}]" in own:
                counts[name] += 1
    return counts


class Load:
    """Sends jobs of all kinds, and asks for events, until it is stopped."""

    def __init__(self, stack: Stack) -> None:
        self._stack, self._stopping = stack, threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        client = celery.Celery("stock", broker=self._stack.broker_url, set_as_current=False)
        with client.connection_for_write() as connection:
            while not self._stopping.wait(0.05):
                for kind in KINDS:
                    self._stack.producer.enqueue_many([kind(number=number) for number in range(4)])
                client.control.broadcast("enable_events", connection=connection, reply=True, timeout=0.1)
        client.close()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def ended(self) -> Counter[str]:
        """Jobs that have succeeded, by kind."""
        count = (
            sa.select(jobs.c.kind, sa.func.count().label("number"))
            .where(jobs.c.state == "succeeded")
            .group_by(jobs.c.kind)
        )
        rows = self._stack.database.read(lambda connection: connection.execute(count).all())
        return Counter({row.kind: row.number for row in rows})


@contextmanager
def under_load(stack: Stack) -> Iterator[Load]:
    load = Load(stack)
    try:
        yield load
    finally:
        load.stop()


@pytest.fixture
def start(
    request: pytest.FixtureRequest, own_redis: RedisServer, prefix: str, tmp_path: Path
) -> Iterator[Callable[..., Stack]]:
    """`start(engine, broker, database_url, *options)`: a worker and a dispatcher, stopped afterwards."""
    stacks: list[tuple[str, Stack]] = []

    def start(engine: str, broker: str, database_url: str, *options: str) -> Stack:
        url = broker_url(broker, own_redis)
        stack = Stack(engine, url, prefix, tmp_path, lease_seconds=15.0, database_url=set_up(database_url))
        stacks.append((broker, stack))
        variables = {"PYTHONPATH": str(APPS), "PENSTOCK_LIMITS_URL": own_redis.url}
        stack.run(["dispatcher", "--import", "mixed_jobs"], **variables)
        worker = ["worker", "--engine", engine, "--queues", "mixed", "--concurrency", "20", "--import", "mixed_jobs"]
        stack.run([*worker, *options], **variables)
        return stack

    yield start
    for broker, stack in stacks:
        stack.stop()
        delete_queues(broker, prefix)


@pytest.mark.slow
@pytest.mark.postgres
@pytest.mark.mariadb
@pytest.mark.rabbitmq
@pytest.mark.parametrize(
    ("engine", "broker", "database", "processes"),
    [
        ("celery", "redis", "postgres", 1),
        ("celery", "rabbitmq", "mariadb", 1),
        ("dramatiq", "redis", "mariadb", 2),
        ("dramatiq", "rabbitmq", "postgres", 1),
    ],
)
def test_a_process_holds_few_connections_idle_and_under_load(
    engine: str,
    broker: str,
    database: str,
    processes: int,
    start: Callable[..., Stack],
    own_redis: RedisServer,
    request: pytest.FixtureRequest,
) -> None:
    database_url: str = request.getfixturevalue(f"{database}_url")
    stack = start(engine, broker, database_url, "--processes", str(processes))
    servers = {"redis": own_redis.url, "ledger": database_url, broker: stack.broker_url}
    ports = {urlsplit(url).port or 0: name for name, url in servers.items()}

    def pids() -> list[int] | None:
        live = [each.member.pid for each in stack.live_workers()]
        return live if len(live) == processes else None

    workers = until(pids, "the processes", unless=lambda: _ended(stack))
    limits = LIMITS[broker]

    def most(seconds: float) -> dict[str, int]:
        """The most connections of a process to each server within a while."""
        counts, ends = Counter[str](), time.monotonic() + seconds
        while time.monotonic() < ends:
            for pid in workers:
                counts |= connections(pid, ports)
            time.sleep(0.01)
        return dict(counts)

    with under_load(stack) as load:
        until(lambda: len(load.ended()) == len(KINDS) - 1, "an end of each tracked kind", unless=lambda: _ended(stack))

        def is_within_limits() -> bool:
            """In some second: a thread that a busy machine keeps waiting for its turn connects by itself."""
            before = load.ended().total()
            assert most(1.0) == limits
            return load.ended().total() > before

        until(is_within_limits, unless=lambda: _ended(stack))
    until(lambda: most(0.5) == limits, "an idle worker", unless=lambda: _ended(stack))
    parent = stack.processes[1].pid
    assert parent in workers or not connections(parent, ports), "the parent of processes has none"
    if broker == "redis":
        with redis.Redis.from_url(own_redis.url) as client:
            names = Counter(each["name"] for each in client.client_list())
        for each in stack.live_workers():
            assert names[each.member.name] == limits["redis"], "each of its connections has its name"


def _ended(stack: Stack) -> str | None:
    return stack.logs() if any(process.poll() is not None for process in stack.processes) else None
