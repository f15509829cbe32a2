from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from amqp.exceptions import AMQPError
from support.servers.shared import AMQP_URL, delete_rabbitmq, for_pika, need

from penstock.producers.senders.rabbitmq.publisher import connect
from penstock.workers.local.up.redis_server import RedisServer

sys.path.append(str(Path(__file__).parent))

from moving import CeleryShop, DramatiqShop, Shop


@pytest.fixture(params=["redis", pytest.param("rabbitmq", marks=pytest.mark.rabbitmq)])
def broker(request: pytest.FixtureRequest) -> str:
    if request.param == "rabbitmq":
        need("RabbitMQ")
    return str(request.param)


@pytest.fixture
def shop(engine: str, broker: str, prefix: str, tmp_path: Path, redis_server: RedisServer) -> Iterator[Shop]:
    """Nothing runs yet."""
    url = AMQP_URL if broker == "rabbitmq" else redis_server.url
    old_url = for_pika(url) if engine == "dramatiq" and broker == "rabbitmq" else url
    shop = (CeleryShop if engine == "celery" else DramatiqShop)(url, prefix, tmp_path, old_url)
    yield shop
    shop.stop()
    if broker == "rabbitmq":
        delete_rabbitmq(url, prefix)
        connection = connect(url, timeout_seconds=10)
        with suppress(AMQPError):
            for exchange in (shop.mails, shop.images):
                connection.channel().exchange_delete(exchange)
        connection.close()
