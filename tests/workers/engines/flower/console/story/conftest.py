from __future__ import annotations

import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from served import Flower
from support.servers.shared import broker_url
from support.stack import stopped_at_the_end

from penstock.workers.local.up.redis_server import RedisServer

sys.path.append(str(Path(__file__).parent))

from shop_site import Shop


@pytest.fixture
def shop(request: pytest.FixtureRequest, redis_server: RedisServer, tmp_path: Path) -> Iterator[Shop]:
    """The shop on an engine and a broker, with a dispatcher and no worker yet."""
    engine, broker = request.param
    prefix = f"t{uuid.uuid4().hex[:10]}"
    shop = Shop(engine, broker_url(broker, redis_server), prefix, tmp_path, lease_seconds=15)
    with stopped_at_the_end(shop, broker, request.session):
        shop.start_dispatcher()
        yield shop


@pytest.fixture
def console(shop: Shop) -> Flower:
    return shop.start_console()
