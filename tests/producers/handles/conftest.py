from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from producers.handles.watched_jobs import cues
from support.ledgers import upgraded

from penstock.config.settings import Settings
from penstock.producers import Producer
from penstock.workers.engines.worker import Worker


@pytest.fixture
def settings(redis_url: str, prefix: str, tmp_path: Path) -> Settings:
    cues.clear()
    url = upgraded(f"sqlite:///{tmp_path}/ledger.db")
    return Settings(broker_url=redis_url, prefix=prefix, database_url=url, storage_url=f"file:{tmp_path}/storage")


@pytest.fixture
def worker(settings: Settings) -> Iterator[Worker]:
    worker = Worker(settings, engine="inline", queues=["watched"], concurrency=50)
    worker.start()
    yield worker
    worker.stop(0)


@pytest.fixture
def producer(settings: Settings) -> Iterator[Producer]:
    with Producer.from_settings(settings) as producer:
        yield producer


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client
