from __future__ import annotations

import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.servers.shared import broker_url, delete_queues

from penstock.workers.local.up.redis_server import RedisServer

sys.path.append(str(Path(__file__).parent))

from support.stack import PAIRS, Stack


@pytest.fixture(scope="module", params=[("inline", "memory"), *PAIRS], ids="-".join)
def stack(
    request: pytest.FixtureRequest, redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """A running stack of each engine on each broker, shared by a module's tests."""
    engine, broker = request.param
    prefix = f"t{uuid.uuid4().hex[:10]}"
    stack = Stack(
        engine, broker_url(broker, redis_server), prefix, tmp_path_factory.mktemp(f"{engine}-{broker}")
    ).start()
    yield stack
    failed = request.session.testsfailed
    stack.stop()
    if failed:
        print(stack.logs())
    delete_queues(broker, prefix)


@pytest.fixture(params=PAIRS, ids="-".join)
def own_stack(request: pytest.FixtureRequest, redis_server: RedisServer, tmp_path: Path) -> Iterator[Stack]:
    """A stack with a dispatcher and no worker yet, for tests that start and kill workers themselves."""
    engine, broker = request.param
    prefix = f"t{uuid.uuid4().hex[:10]}"
    stack = Stack(engine, broker_url(broker, redis_server), prefix, tmp_path)
    stack.start_dispatcher()
    yield stack
    failed = request.session.testsfailed
    stack.stop()
    if failed:
        print(stack.logs())
    delete_queues(broker, prefix)
