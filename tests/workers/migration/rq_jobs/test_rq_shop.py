"""The application of examples/adopt/rq, unchanged, under RQ's worker and under ours; the steps of docs/from-rq.md."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from rq.job import Job
from support.polling import WAIT_SECONDS, until
from support.servers.shared import broker_url
from support.stack import PAIRS, PENSTOCK, Stack, lines, stopped_at_the_end

from penstock.workers.local.up.redis_server import RedisServer

SHOP = Path(__file__).parents[4] / "examples/adopt/rq"
QUEUES = ["high", "default"]

pytestmark = pytest.mark.timeout(400)


class Shop:
    """The application, whose code is in processes of its own."""

    def __init__(self, url: str, folder: Path) -> None:
        self.connection, self.folder, self.journal = Redis.from_url(url), folder, folder / "journal"
        self.env = {"RQ_REDIS_URL": url, "SHOP_JOURNAL": str(self.journal), "PYTHONPATH": str(SHOP)}

    def call(self, expression: str) -> Any:
        """The value of an expression with the application's names, as its web backend would have it."""
        code = f"import json; from rq_shop import *; print(json.dumps({expression}))"
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | self.env,
            capture_output=True,
            text=True,
            timeout=WAIT_SECONDS,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def start_own_worker(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "rq.cli", "worker", "--with-scheduler", *QUEUES]
        with (self.folder / "rq.log").open("wb") as log:
            return subprocess.Popen(command, env=os.environ | self.env, stdout=log, stderr=log, start_new_session=True)

    def take_over(self, stack: Stack, *options: str) -> None:
        """Start what runs the jobs from now on, in place of RQ's workers."""
        stack.run(["dispatcher", "--rq", ",".join(QUEUES)], **self.env)
        self.start_worker(stack, *options)

    def start_worker(self, stack: Stack, *options: str) -> None:
        stack.run(
            ["worker", "--engine", stack.engine, "--rq", ",".join(QUEUES), "--concurrency", "4", *options], **self.env
        )

    def list_charges(self, stack: Stack) -> list[dict[str, Any]]:
        """The charges in the ledger, as `penstock jobs list` finds them."""
        filters = ["--kind", "rq.high", "--field", "function=rq_shop.charge", "--rq", "high", "--json"]
        env = os.environ | self.env | {"PENSTOCK_DATABASE_URL": stack.settings.database_url}
        done = subprocess.run([PENSTOCK, "jobs", "list", *filters], env=env, capture_output=True, text=True, check=True)
        listed: list[dict[str, Any]] = json.loads(done.stdout)
        return listed

    def job(self, rq_id: str) -> Job:
        return Job.fetch(rq_id, connection=self.connection)

    def wait_for_order(self, number: str, ids: dict[str, str], unless: Any = None) -> None:
        """Wait for the end of all jobs of an order, and check RQ's records and the journal."""
        ended = ("finished", "failed")
        until(lambda: all(self.job(rq_id).get_status() in ended for rq_id in ids.values()), unless=unless)
        records = {
            name: (self.job(rq_id).get_status().value, self.job(rq_id).return_value()) for name, rq_id in ids.items()
        }
        assert records == {
            "charge": ("finished", 3),
            "receipt": ("finished", f"receipt of {number}"),
            "resize": ("finished", {"image": f"{number}.png", "width": 100}),
            "stock": ("finished", "in stock"),
            "refuse": ("failed", None),
            "mail": ("finished", f"mailed {number}"),
        }
        failure = self.job(ids["refuse"]).latest_result()
        assert failure is not None
        assert f"ValueError: order {number} is not valid" in str(failure.exc_string)
        journal = lines(self.journal)
        self.journal.unlink()
        assert sorted(journal) == sorted(
            [f"charge {number} {call}" for call in (1, 2, 3)]
            + [f"alarm ValueError: order {number} is not valid", "paid 3", f"receipt {number} 2"]
            + [f"resize {number}.png", f"mail {number}"]
        )
        assert journal.index(f"receipt {number} 2") > journal.index("paid 3")


@pytest.fixture
def shop(rq_url: str, tmp_path: Path) -> Shop:
    return Shop(rq_url, tmp_path)


@pytest.fixture
def stack(
    engine: str, broker: str, prefix: str, tmp_path: Path, redis_server: RedisServer, request: pytest.FixtureRequest
) -> Iterator[Stack]:
    stack = Stack(engine, broker_url(broker, redis_server), prefix, tmp_path)
    with stopped_at_the_end(stack, broker, request.session):
        yield stack


@pytest.mark.parametrize(("engine", "broker"), [("celery", "redis")])
def test_the_steps_of_the_guide(shop: Shop, stack: Stack) -> None:
    # Before: RQ's own worker.
    worker = shop.start_own_worker()
    try:
        shop.wait_for_order("1", shop.call("order('1')"), unless=lambda: worker.poll() is not None)
    finally:
        worker.terminate()  # 1. It ends. Jobs wait from now on.
        worker.wait(WAIT_SECONDS)
    ids = shop.call("order('2')")
    # 2. Ours run them, and what is enqueued later.
    shop.take_over(stack)
    shop.wait_for_order("2", ids)
    # 3. The ledger has them.
    assert [row["key"] for row in shop.list_charges(stack)] == [ids["charge"]]
    # Back again.
    for process in stack.processes:
        stack.stop_process(process)
    worker = shop.start_own_worker()
    try:
        shop.wait_for_order("3", shop.call("order('3')"), unless=lambda: worker.poll() is not None)
    finally:
        worker.terminate()
        worker.wait(WAIT_SECONDS)


@pytest.mark.parametrize(("engine", "broker"), [pair for pair in PAIRS if pair != ("celery", "redis")])
def test_the_shop_runs_unchanged(shop: Shop, stack: Stack) -> None:
    shop.take_over(stack, "--pool", "threads")
    shop.wait_for_order("1", shop.call("order('1')"))


@pytest.mark.parametrize(
    ("engine", "broker", "pool"), [("celery", "redis", "processes"), ("dramatiq", "rabbitmq", "threads")]
)
def test_nothing_is_lost_when_a_worker_is_killed_amid_200_jobs(shop: Shop, stack: Stack, pool: str) -> None:
    shop.take_over(stack, "--pool", pool)
    ids = shop.call("[default.enqueue(resize, str(number)).id for number in range(200)]")
    until(lambda: len(lines(shop.journal)) >= 20)
    stack.processes[1].send_signal(signal.SIGKILL)
    stack.processes[1].wait(WAIT_SECONDS)
    assert len(lines(shop.journal)) < 200
    shop.start_worker(stack, "--pool", pool)
    until(lambda: [rq_id for rq_id in ids if shop.job(rq_id).get_status() != "finished"] == [])
    assert {line.split()[1] for line in lines(shop.journal)} == {str(number) for number in range(200)}
