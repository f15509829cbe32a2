"""Requests a second to the gateway, and to a bare FastAPI route with the same validation; one process each."""

from __future__ import annotations

import json
import math
import os
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.entrants import OURS, ROOT
from benchmarks.plan import Plan, say
from benchmarks.session import STALL_SECONDS, BenchError
from benchmarks.tables import Requirement, Table
from penstock.ledger.members import api_keys
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.upgrade import upgrade
from penstock.workers.local.up.layout import http_answers
from penstock.workers.local.up.redis_server import free_port

COUNT, WARM_UP = 6000, 300
GATEWAY, BARE = "Penstock, gateway", "FastAPI, a bare route"


def redis(plan: Plan) -> Table:
    table = Table("Requests that send one job, over 32 connections, Redis", "requests/s")
    table.requirements = [Requirement(GATEWAY, BARE, 0.7)]
    table.notes.append("the bare route validates the same fields and sends nothing; both under uvicorn")
    ledger = f"sqlite:///{plan.servers.folder}/gateway.db"
    database = Database(ledger)
    upgrade(database)
    key, _made = api_keys.add(database, "bench", requests_per_second=math.inf)
    database.close()
    environment = os.environ | {
        "BENCH_KEY": key,
        "PENSTOCK_BROKER_URL": plan.servers.redis.url,
        "PENSTOCK_DATABASE_URL": ledger,
        "PENSTOCK_PREFIX": f"b{uuid.uuid4().hex[:8]}",
        "PENSTOCK_TOKEN_SECRET": uuid.uuid4().hex,
    }
    count = plan.jobs(COUNT)
    for number in range(plan.rounds):
        say(f"round {number + 1}/{plan.rounds}: gateway")
        plan.servers.clear("redis")
        try:
            for name, factory in ((GATEWAY, "gateway"), (BARE, "bare")):
                with _server(plan, factory, environment) as (port, pid):
                    _load(port, WARM_UP, environment)
                    before = _cpu_seconds(pid)
                    seconds = _load(port, count, environment)
                    table.add(name, count / seconds, peer=name == BARE, cpu=(_cpu_seconds(pid) - before) / count * 1e6)
        except BenchError as error:
            plan.errors.append(str(error))
            say(str(error))
            break
    return table


@contextmanager
def _server(plan: Plan, factory: str, environment: dict[str, str]) -> Iterator[tuple[int, int]]:
    port, log = free_port(), plan.servers.folder / f"{factory}.log"
    options = ["--factory", "--no-access-log", "--log-level", "warning", "--port", str(port)]
    with log.open("wb") as out:
        command = [OURS / "uvicorn", *options, f"benchmarks.apps.doors:{factory}"]
        server = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=out)
    try:
        deadline = time.monotonic() + STALL_SECONDS
        while not http_answers(port):
            if server.poll() is not None or time.monotonic() > deadline:
                raise BenchError(f"{factory} does not answer: {log.read_text(errors='replace')[-1500:]}")
            time.sleep(0.05)
        yield port, server.pid
    finally:
        server.terminate()
        server.wait(30)


def _load(port: int, count: int, environment: dict[str, str]) -> float:
    command = [OURS / "python", "-m", "benchmarks.programs.http_load", str(port), str(count)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    if done.returncode != 0:
        raise BenchError(f"the requests failed: {done.stderr[-800:]}")
    return float(json.loads(done.stdout)["seconds"])


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
