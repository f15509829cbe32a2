from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import celery
import pytest
from celery import _state
from support.servers.shared import AMQP_URL, delete_queues

from penstock.workers.local.up.redis_server import RedisServer

sys.path.append(str(Path(__file__).parent))

from celery_example import EXAMPLE, AdoptedShop, forget_adopted


@pytest.fixture
def adopted_for_a_test() -> Iterator[None]:
    """Fixture: the application that a test adopts in this process is forgotten after it."""
    before = celery.current_app._get_current_object()
    yield
    before.set_current()
    forget_adopted()


@pytest.fixture
def adopted(
    broker: str,
    prefix: str,
    tmp_path: Path,
    redis_server: RedisServer,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> Iterator[AdoptedShop]:
    """Nothing runs yet."""
    url = AMQP_URL if broker == "rabbitmq" else redis_server.url
    for name, value in {
        "SHOP_BROKER": url,
        "SHOP_BACKEND": redis_server.url,
        "SHOP_QUEUE": f"{prefix}-celery",
        "SHOP_FILE": str(tmp_path / "lines"),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.syspath_prepend(str(EXAMPLE))
    # Celery keeps the tasks of every application for all later ones, and this is the same one for each test.
    monkeypatch.setattr(_state, "_on_app_finalizers", set(_state._on_app_finalizers))
    sys.modules.pop("shop", None)
    shop = importlib.import_module("shop")
    adopted = AdoptedShop(url, prefix, tmp_path, shop)
    yield adopted
    backend = shop.app.backend  # what `close` leaves open
    backend.result_consumer.stop()
    backend.result_consumer._pubsub = None  # else results that are deleted later open it again
    backend.client.connection_pool.disconnect()
    shop.app.close()
    sys.modules.pop("shop", None)
    adopted.stack.stop()
    if request.session.testsfailed:
        print(adopted.stack.logs())
    delete_queues(broker, prefix)
