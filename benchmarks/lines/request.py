"""The time that enqueueing adds to a request: FastAPI under uvicorn, Redis, requests from a process of their own."""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

from benchmarks.entrants import OURS, ROOT
from benchmarks.plan import Plan, say
from benchmarks.session import STALL_SECONDS, BenchError
from benchmarks.tables import Table
from penstock.workers.local.up.redis_server import free_port

COUNT = 4000
WITHOUT, WITH, ADDED = "without enqueueing", "enqueueing", "what it adds"


def redis(plan: Plan) -> Table:
    table = Table("A request to FastAPI under uvicorn, median, Redis", "ms", more_is_better=False)
    table.limits = {ADDED: 0.3}
    for number in range(plan.rounds):
        say(f"round {number + 1}/{plan.rounds}: request")
        plan.servers.clear("redis")
        try:
            with _site(plan) as port:
                seconds = _ask(port, plan.jobs(COUNT), ["/without", "/enqueue"])
        except BenchError as error:
            plan.errors.append(str(error))
            say(str(error))
            break
        without, enqueueing = (median(seconds[path]) * 1000 for path in ("/without", "/enqueue"))
        table.add(WITHOUT, without, peer=False)
        table.add(WITH, enqueueing, peer=False)
        table.add(ADDED, enqueueing - without, peer=False)
    return table


@contextmanager
def _site(plan: Plan) -> Iterator[int]:
    port, log = free_port(), plan.servers.folder / "uvicorn.log"
    command = [OURS / "uvicorn", "--no-access-log", "--port", str(port), "benchmarks.apps.site:app"]
    environment = os.environ | {"PENSTOCK_BROKER_URL": plan.servers.redis.url, "PENSTOCK_PREFIX": "bench-site"}
    with log.open("wb") as out:
        server = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=out)
    try:
        deadline = time.monotonic() + STALL_SECONDS
        while not _answers(port):
            if server.poll() is not None or time.monotonic() > deadline:
                raise BenchError(f"the site does not answer: {log.read_text(errors='replace')[-1500:]}")
            time.sleep(0.05)
        yield port
    finally:
        server.terminate()
        server.wait(30)


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/penstock/ready", timeout=10) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _ask(port: int, count: int, paths: list[str]) -> dict[str, list[float]]:
    command = [OURS / "python", "-m", "benchmarks.programs.http_latency", str(port), str(count), *paths]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    if done.returncode != 0:
        raise BenchError(f"the requests failed: {done.stderr[-800:]}")
    seconds: dict[str, list[float]] = json.loads(done.stdout)
    return seconds
