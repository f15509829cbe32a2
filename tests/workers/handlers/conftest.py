"""A Django project with a database of its own on PostgreSQL, and workers that find its handlers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from redis import Redis
from support.ledgers import upgraded
from support.polling import WAIT_SECONDS

from penstock.config.settings import Settings
from penstock.ledger.sql.database import Database
from penstock.producers import JobHandle, Producer
from penstock.schemas import Job
from penstock.workers.local.up.redis_server import RedisServer

SITE = Path(__file__).parent / "site"
sys.path.append(str(SITE))

PENSTOCK = Path(sys.executable).parent / "penstock"


class Depot:
    """The project, with a worker and what the worker needs."""

    def __init__(self, redis: RedisServer, postgres_url: str, folder: Path, max_age: int | None) -> None:
        self.name = f"depot-{uuid.uuid4().hex[:8]}"
        self.log = folder / "worker.log"
        url = sa.make_url(postgres_url)
        database = {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": url.database,
            "USER": url.username or "",
            "PASSWORD": url.password or "",
            "HOST": url.host or "",
            "PORT": str(url.port or ""),
            "CONN_MAX_AGE": max_age,
            "OPTIONS": {"application_name": self.name},
        }
        self.settings = Settings(
            broker_url=redis.url, database_url=f"sqlite:///{folder}/ledger.db", prefix=self.name, grace_seconds=5
        )
        self.environment = os.environ | {
            "DJANGO_SETTINGS_MODULE": "depot.settings",
            "DEPOT_DATABASE": json.dumps(database),
            "DEPOT_CACHE": f"{redis.url}?client_name={self.name}",
            "PENSTOCK_BROKER_URL": self.settings.broker_url,
            "PENSTOCK_DATABASE_URL": self.settings.database_url,
            "PENSTOCK_PREFIX": self.settings.prefix,
            "PENSTOCK_GRACE_SECONDS": "5",
        }
        self.redis = Redis.from_url(redis.url)
        self.server = sa.create_engine(postgres_url, isolation_level="AUTOCOMMIT")
        with self.server.connect() as connection:
            connection.execute(sa.text("CREATE TABLE IF NOT EXISTS depot_crate (id bigserial PRIMARY KEY, label text)"))
        self.ledger = Database(upgraded(self.settings.database_url))
        self.producer = Producer.from_settings(self.settings)

    @contextmanager
    def worker(self, engine: str) -> Iterator[None]:
        """A worker that is given neither modules nor queues of the project beyond its variable."""
        command = [PENSTOCK, "worker", "--engine", engine, "--queues", "depot", "--concurrency", "8"]
        with self.log.open("wb") as log:
            process = subprocess.Popen(command, cwd=SITE, env=self.environment, stdout=log, stderr=log)
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(WAIT_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def run(self, *jobs: Job) -> list[Any]:
        """The results of jobs that run at the same time."""
        return [self.result(handle) for handle in self.producer.enqueue_many(jobs)]

    def result(self, handle: JobHandle) -> Any:
        try:
            return handle.result(timeout=WAIT_SECONDS)
        except Exception as error:
            error.add_note(self.log.read_text(errors="replace")[-8000:])
            raise

    def connections(self) -> set[int]:
        """The processes that serve the project's connections."""
        query = sa.text("SELECT pid FROM pg_stat_activity WHERE application_name = :name")
        with self.server.connect() as connection:
            return set(connection.execute(query, {"name": self.name}).scalars())

    def cache_connections(self) -> int:
        """Connections of the project's cache in Redis."""
        return sum(client["name"] == self.name for client in self.redis.client_list())

    def cut(self) -> int:
        """End all of the project's connections in the server. Returns how many there were."""
        query = sa.text("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = :name")
        with self.server.connect() as connection:
            return int(connection.execute(query, {"name": self.name}).scalar_one())

    def close(self) -> None:
        self.redis.close()
        self.producer.close()
        self.ledger.close()
        self.server.dispose()


@contextmanager
def open_depot(redis: RedisServer, postgres_url: str, folder: Path, max_age: int | None) -> Iterator[Depot]:
    depot = Depot(redis, postgres_url, folder, max_age)
    try:
        yield depot
    finally:
        depot.close()


@pytest.fixture(scope="module", params=["celery", "dramatiq"])
def persistent(
    request: pytest.FixtureRequest,
    redis_server: RedisServer,
    postgres_url: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Depot]:
    """A worker of each engine, whose connections stay open after a job."""
    folder = tmp_path_factory.mktemp("persistent")
    with open_depot(redis_server, postgres_url, folder, None) as depot, depot.worker(request.param):
        yield depot


@pytest.fixture(scope="module")
def closing(redis_server: RedisServer, postgres_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Depot]:
    """A worker with Django's default: a connection ends with the job."""
    folder = tmp_path_factory.mktemp("closing")
    with open_depot(redis_server, postgres_url, folder, 0) as depot, depot.worker("celery"):
        yield depot
