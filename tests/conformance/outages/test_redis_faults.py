"""A Redis that takes connections and does not serve: full, read-only, unable to write, silent, cutting connections."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import acme
import pytest
import redis
import sqlalchemy as sa
from support.polling import retry, until
from support.servers.killable_redis import running_redis
from support.servers.processes import freeze
from support.stack import Stack

from penstock.config.errors import BrokerUnavailable
from penstock.ledger.sql.tables import jobs
from penstock.producers.senders import open_sender_from
from penstock.workers.local.up.redis_server import RedisServer, redis_command

BACKLOG = 1500
CUTS = 15

pytestmark = pytest.mark.slow
engines = pytest.mark.parametrize("engine", ["celery", "dramatiq"])


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with running_redis(tmp_path) as server:
        yield server


@pytest.fixture
def stack(engine: str, server: RedisServer, prefix: str, tmp_path: Path) -> Iterator[Stack]:
    stack = Stack(engine, server.url, prefix, tmp_path)
    yield stack
    stack.stop()
    print(stack.logs())


def succeeded(stack: Stack) -> int:
    select = sa.select(sa.func.count()).where(jobs.c.state == "succeeded")
    return int(stack.database.read(lambda connection: connection.scalar(select)))


def is_empty(stack: Stack) -> None:
    with closing(open_sender_from(stack.settings)) as sender:
        until(lambda: sender.depths(["acme"]) == {"acme": 0}, "an empty queue")


def client_of(server: RedisServer) -> redis.Redis:
    return redis.Redis.from_url(server.url)


@engines
def test_a_full_redis_is_drained_by_a_worker_that_begins_on_it(stack: Stack, server: RedisServer) -> None:
    stack.producer.enqueue_many([acme.Add(a=number, b=1) for number in range(BACKLOG)])
    with client_of(server) as client:
        client.config_set("maxmemory", 1)  # and so it stays full, however much is taken out
    with pytest.raises(BrokerUnavailable, match="maxmemory"):
        stack.producer.enqueue(acme.Add(a=1, b=1))
    first = stack.start_worker()
    until(lambda: succeeded(stack) > BACKLOG // 4, "a quarter", unless=first.poll)
    second = stack.start_worker()
    until(lambda: succeeded(stack) == BACKLOG, "all jobs", unless=first.poll)
    is_empty(stack)
    with client_of(server) as client:
        assert sum(client.xlen(key) for key in client.scan_iter(f"{stack.settings.prefix}:*", _type="stream")) == 0
        client.config_set("maxmemory", 0)
    stack.producer.enqueue(acme.Add(a=1, b=1)).result(timeout=60)
    assert (first.poll(), second.poll()) == (None, None)


@contextmanager
def unable_to_save(server: RedisServer) -> Iterator[None]:
    """MISCONF, as of a full disk: a folder is where the snapshot would go."""
    obstacle = server.folder / "dump.rdb"
    obstacle.mkdir()

    def ended(client: redis.Redis, status: str) -> bool:
        persistence = client.info("persistence")
        if persistence["rdb_last_bgsave_status"] != status and not persistence["rdb_bgsave_in_progress"]:
            client.bgsave()
        return bool(persistence["rdb_last_bgsave_status"] == status)

    with client_of(server) as client:
        client.config_set("save", "3600 1")
        until(lambda: ended(client, "err"), "a snapshot that failed", pause=0.2)
        yield
        obstacle.rmdir()
        until(lambda: ended(client, "ok"), "a snapshot", pause=0.2)


@contextmanager
def replica(server: RedisServer) -> Iterator[None]:
    with client_of(server) as client:
        client.replicaof("127.0.0.1", 9)
        yield
        client.replicaof("NO", "ONE")


@contextmanager
def stalled(server: RedisServer) -> Iterator[None]:
    assert server.process is not None
    freeze(server.process.pid)
    yield
    server.process.send_signal(signal.SIGCONT)


@contextmanager
def loading(server: RedisServer) -> Iterator[None]:
    """Starts again, with data that take it fifteen seconds to load."""
    with client_of(server) as client:
        for number in range(150):
            client.set(f"large-{number}", random.randbytes(3000))
        client.config_set("auto-aof-rewrite-percentage", 0)
        client.bgrewriteaof()
        until(lambda: is_rewritten(client), "a rewritten file")
    server.stop()
    slowly = ["--key-load-delay", "100000", "--loading-process-events-interval-bytes", "1024"]
    command = redis_command(server.folder, server.port, server.folder / "redis.log")
    server.process = subprocess.Popen([*command, *slowly], start_new_session=True)
    yield


def is_rewritten(client: redis.Redis) -> bool:
    persistence = client.info("persistence")
    return not persistence["aof_rewrite_in_progress"] and not persistence["aof_rewrite_scheduled"]


def refusal(stack: Stack) -> str:
    """Why a job is not taken now; empty: it was."""
    try:
        stack.producer.enqueue(acme.Add(a=1, b=1))
    except BrokerUnavailable as error:
        return str(error)
    return ""


FAULTS = {
    "unable to save": (unable_to_save, "MISCONF"),
    "replica": (replica, "replica"),
    "stalled": (stalled, "Timeout"),
    "loading": (loading, "loading"),
}


@engines
@pytest.mark.parametrize("fault", FAULTS)
def test_producers_get_an_error_during_a_fault_of_redis_and_workers_go_on_after_it(
    stack: Stack, server: RedisServer, fault: str
) -> None:
    begin, reason = FAULTS[fault]
    dispatcher, worker = stack.start_dispatcher(), stack.start_worker()
    mark = stack.folder / "marks"
    stack.producer.enqueue(acme.Add(a=1, b=1)).result(timeout=60)
    runs = [stack.producer.enqueue(acme.Mark(file=str(mark), text="x", seconds=1)) for _ in range(5)]
    until(lambda: mark.exists() and len(mark.read_text().splitlines()) == len(runs), "jobs under way")
    with begin(server):
        until(lambda: reason in refusal(stack), "a refusal")
        until(lambda: succeeded(stack) >= 1 + len(runs), "outcomes of the jobs under way")
        until(lambda: "Redis at" in log_of(stack, worker), "a line in the worker's log")
    handles = retry(lambda: stack.producer.enqueue_many([acme.Add(a=1, b=1)] * 20), BrokerUnavailable)
    for handle in handles:
        handle.result(timeout=60)
    is_empty(stack)
    assert len(mark.read_text().splitlines()) == len(runs), "none ran twice"
    assert (dispatcher.poll(), worker.poll()) == (None, None)


@engines
def test_connections_that_are_cut_again_and_again_lose_no_job(stack: Stack, server: RedisServer) -> None:
    dispatcher, worker = stack.start_dispatcher(), stack.start_worker()
    stack.producer.enqueue(acme.Add(a=1, b=1)).result(timeout=60)
    sent = 1
    with client_of(server) as client:
        for _ in range(CUTS):
            client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            for _ in range(20):
                retry(lambda: stack.producer.enqueue(acme.Add(a=1, b=1)), BrokerUnavailable)
                sent += 1
            time.sleep(0.2)
    # A copy of a job whose confirmation was cut has its id, or its producer got an error.
    until(lambda: succeeded(stack) >= sent, f"{sent} jobs")
    is_empty(stack)
    assert (dispatcher.poll(), worker.poll()) == (None, None)


def log_of(stack: Stack, process: subprocess.Popen[bytes]) -> str:
    return (stack.folder / f"worker-{stack.processes.index(process)}.log").read_text(errors="replace")
