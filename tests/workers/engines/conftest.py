from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.servers.shared import broker_url, delete_queues

from penstock.workers.local.up.redis_server import RedisServer

sys.path += [str(Path(__file__).parent / folder) for folder in (".", "apps", "lifetime", "control", "flower")]

from running import PAIRS, Running, running


@pytest.fixture(scope="module", params=PAIRS, ids="-".join)
def worker(
    request: pytest.FixtureRequest, redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    """A worker of each engine on each broker, shared by a module's tests."""
    engine, broker = request.param
    prefix = f"t{uuid.uuid4().hex[:10]}"
    with running(engine, broker_url(broker, redis_server), prefix, tmp_path_factory.mktemp("worker")) as worker:
        yield worker
    delete_queues(broker, prefix)


@pytest.fixture(params=PAIRS, ids="-".join)
def own_worker(request: pytest.FixtureRequest, redis_server: RedisServer, tmp_path: Path) -> Iterator[Running]:
    """A worker for a test that ends it."""
    engine, broker = request.param
    prefix = f"t{uuid.uuid4().hex[:10]}"
    with running(engine, broker_url(broker, redis_server), prefix, tmp_path) as worker:
        yield worker
    delete_queues(broker, prefix)


@pytest.fixture
def start_worker(redis_server: RedisServer, prefix: str, tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """`start_worker(engine, *modules)`: workers on Redis, stopped afterwards."""
    started: list[Running] = []

    def start(engine: str, *modules: str) -> Running:
        worker = Running(engine, redis_server.url, prefix, tmp_path, modules=modules)
        started.append(worker)
        return worker.start()

    yield start
    for worker in started:
        worker.stop()
