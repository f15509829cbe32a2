"""Leases of a process that runs but gives its threads no turn."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis
from support.brokers import envelope, fetch, ids
from support.polling import until
from support.servers.processes import runs

from penstock.producers.senders import Sender
from penstock.producers.senders.redis.sender import lane_keys
from penstock.workers.brokers import Consumer
from penstock.workers.brokers.redis.lease_keeper import LeaseKeeper, is_possible
from penstock.workers.local.up.redis_server import RedisServer

MakeSender = Callable[..., Sender]
MakeConsumer = Callable[..., Consumer]
LEASE = 1.0

pytestmark = pytest.mark.skipif(not is_possible(), reason="needs /proc, to see whether a process is suspended")

WORKER = """
import ctypes, os, sys
from penstock.workers.brokers import open_consumer
url, prefix, lease, seconds = sys.argv[1:]
options = {"prefix": prefix, "lease_seconds": float(lease), "lease_keeper": True}
consumer = open_consumer(url, ["emails"], name="greedy@test-0", **options)
consumer.open()
found = []
while not found:
    found = consumer.fetch(10, 1)
print(consumer._leases._lease_keeper.pid, *[delivery.envelope.id for delivery in found], flush=True)
ctypes.PyDLL(None).sleep(int(seconds))  # a PyDLL's functions keep the GIL
consumer.ack(found)
print("done", flush=True)
sys.stdin.read()
consumer.close()
"""

GROUP = """
import ctypes, os, sys, time
from penstock.workers.brokers import open_consumer
from penstock.workers.brokers.redis.lease_keeper import KeeperProcess
url, prefix, lease = sys.argv[1:]
keeper = KeeperProcess()
keeper.ensure()
options = {"prefix": prefix, "lease_seconds": float(lease), "lease_keeper": keeper}
print(keeper.pid, flush=True)
for number in range(2):
    if os.fork() == 0:
        consumer = open_consumer(url, ["emails"], name=f"greedy@test-{number}", **options)
        consumer.open()
        found = []
        while not found:
            found = consumer.fetch(1, 1)
        sys.stdout.write(f"{os.getpid()} {found[0].envelope.id}\\n")
        sys.stdout.flush()
        ctypes.PyDLL(None).sleep(600)
while True:
    keeper.ensure()
    time.sleep(0.1)
"""


class Greedy:
    """A process that fetches what there is and then holds its interpreter."""

    def __init__(self, url: str, prefix: str, seconds: int) -> None:
        command = [sys.executable, "-c", WORKER, url, prefix, str(LEASE), str(seconds)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        pid, *self.ids = self.line().split()
        self.keeper_pid = int(pid)

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def greedy(prefix: str, closing: ExitStack) -> Callable[[str, int], Greedy]:
    def start(url: str, seconds: int) -> Greedy:
        process = Greedy(url, prefix, seconds)
        closing.callback(process.end)
        return process

    return start


@pytest.fixture
def guarded_url(tmp_path: Path) -> Iterator[str]:
    """A Redis that asks for a password; database 3."""
    server = RedisServer(tmp_path / "redis")
    server.start()
    with redis.Redis.from_url(server.url) as client:
        client.config_set("requirepass", "s3cret")
    yield f"redis://:s3cret@127.0.0.1:{server.port}/3"
    server.stop()


@pytest.mark.parametrize("url", ["redis_url", "guarded_url"])
def test_leases_hold_while_a_handler_holds_the_interpreter(
    url: str,
    request: pytest.FixtureRequest,
    prefix: str,
    make_sender: MakeSender,
    make_consumer: MakeConsumer,
    greedy: Callable[[str, int], Greedy],
) -> None:
    broker_url = request.getfixturevalue(url)
    make_sender(broker_url).send([envelope(str(number)) for number in range(3)])
    first = greedy(broker_url, 5)
    other = make_consumer(broker_url, name="other@test-2", lease_seconds=LEASE)
    assert other.fetch(10, 3 * LEASE) == []
    assert first.line() == "done"
    assert first.ids == ["0", "1", "2"]
    with redis.Redis.from_url(broker_url) as client:
        assert sum(int(client.xlen(key)) for key in lane_keys(prefix, "emails")) == 0


def test_a_process_that_is_stopped_or_killed_meanwhile_loses_them(
    redis_url: str, make_sender: MakeSender, make_consumer: MakeConsumer, greedy: Callable[[str, int], Greedy]
) -> None:
    make_sender(redis_url).send([envelope("a")])
    stopped = greedy(redis_url, 600)
    stopped.process.send_signal(signal.SIGSTOP)
    other = make_consumer(redis_url, name="other@test-2", lease_seconds=LEASE)
    deliveries = fetch(other, 1)
    assert ids(deliveries) == ["a"]
    other.ack(deliveries)
    make_sender(redis_url).send([envelope("b")])
    killed = greedy(redis_url, 600)
    killed.process.kill()
    deliveries = fetch(other, 1)
    assert ids(deliveries) == ["b"]
    other.ack(deliveries)


def test_the_keeper_ends_with_its_worker_however_that_ends(
    redis_url: str, make_sender: MakeSender, greedy: Callable[[str, int], Greedy]
) -> None:
    make_sender(redis_url).send([envelope("a")])
    killed = greedy(redis_url, 600)
    assert runs(killed.keeper_pid)
    killed.process.kill()
    until(lambda: not runs(killed.keeper_pid))
    make_sender(redis_url).send([envelope("b")])
    closed = greedy(redis_url, 0)
    assert closed.line() == "done"
    closed.process.communicate("")
    assert closed.process.returncode == 0
    assert not runs(closed.keeper_pid)


def test_a_keeper_that_dies_is_replaced(redis_url: str) -> None:
    keeper = LeaseKeeper(redis_url, "a@test-1", lease_seconds=LEASE, timeout_seconds=1.0)
    keeper.start()
    keeper.watch(b"lane")
    first = keeper.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    until(lambda: (keeper.renewed(), keeper.pid not in (None, first))[1])
    keeper.close()
    assert keeper.pid is None


def test_processes_that_share_a_keeper_lose_the_entries_of_the_one_that_dies(
    redis_url: str, prefix: str, make_sender: MakeSender, make_consumer: MakeConsumer, closing: ExitStack
) -> None:
    make_sender(redis_url).send([envelope("a"), envelope("b")])
    command = [sys.executable, "-c", GROUP, redis_url, prefix, str(LEASE)]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    closing.callback(parent.communicate)
    closing.callback(os.killpg, parent.pid, signal.SIGKILL)
    assert parent.stdout is not None
    keeper = int(parent.stdout.readline())
    holders = {job: int(pid) for pid, job in (parent.stdout.readline().split() for _ in range(2))}
    other = make_consumer(redis_url, name="other@test-2", lease_seconds=LEASE)
    assert other.fetch(10, 3 * LEASE) == []
    os.kill(holders["a"], signal.SIGKILL)
    deliveries = fetch(other, 1)
    assert ids(deliveries) == ["a"]
    other.ack(deliveries)
    assert other.fetch(10, 3 * LEASE) == []
    parent.kill()
    os.kill(holders["b"], signal.SIGKILL)
    assert ids(fetch(other, 1)) == ["b"]
    until(lambda: not runs(keeper), "the end of the keeper, with the last of them")
