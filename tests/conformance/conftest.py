from __future__ import annotations

import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.servers.shared import broker_url

from penstock.workers.local.up.redis_server import RedisServer

sys.path += [str(Path(__file__).parent), str(Path(__file__).parent / "outages")]

from support.stack import PAIRS, Stack, stopped_at_the_end


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
    with stopped_at_the_end(stack, broker, request.session):
        yield stack


@pytest.fixture(params=PAIRS, ids="-".join)
def own_stack(request: pytest.FixtureRequest, redis_server: RedisServer, tmp_path: Path) -> Iterator[Stack]:
    """A stack with a dispatcher and no worker yet, for tests that start and kill workers themselves."""
    engine, broker = request.param
    prefix = f"t{uuid.uuid4().hex[:10]}"
    stack = Stack(engine, broker_url(broker, redis_server), prefix, tmp_path)
    stack.start_dispatcher()
    with stopped_at_the_end(stack, broker, request.session):
        yield stack
