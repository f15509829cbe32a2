from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.servers.shared import broker_url, delete_rabbitmq

from penstock.workers.local.up.redis_server import RedisServer

sys.path.append(str(Path(__file__).parent))

from adopted_shop import AdoptedShop


@pytest.fixture
def shop(broker: str, prefix: str, tmp_path: Path, redis_server: RedisServer) -> Iterator[AdoptedShop]:
    """Nothing runs yet."""
    url = broker_url(broker, redis_server)
    shop = AdoptedShop(url, redis_server.url, prefix, tmp_path)
    yield shop
    shop.stop()
    if broker == "rabbitmq":
        delete_rabbitmq(url, prefix)
