"""Modules that a worker does not load, since it does not use them: each takes memory in every process."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest
from renewing import Renewing
from running import PAIRS
from support.servers.shared import broker_url, delete_queues

from penstock.workers.local.up.redis_server import RedisServer

UNUSED = {
    "its console's colours": ("rich", "pygments"),
    "metrics that no one asks for": ("prometheus_client", "opentelemetry.sdk", "opentelemetry.metrics"),
    "serialisers that are not accepted": ("yaml", "msgpack"),
    "migrations": ("alembic",),
    "other databases": ("psycopg", "pymysql", "sqlalchemy.dialects.postgresql", "sqlalchemy.dialects.mysql"),
    "built-in handlers at work": ("boto3", "botocore", "httpx", "jinja2", "xlsxwriter", "puremagic", "PIL"),
    "memory of the process": ("psutil",),
    "addresses of mails": ("email.headerregistry",),
    "the command line": ("typer",),
    "other services": ("fastapi", "starlette", "uvicorn", "flower", "tornado"),
}
OTHERS = {"celery": ("dramatiq",), "dramatiq": ("celery", "billiard"), "redis": (), "rabbitmq": ("redis",)}


@pytest.fixture(params=PAIRS, ids="-".join)
def pair(request: pytest.FixtureRequest) -> tuple[str, str]:
    """An engine and a broker."""
    engine, broker = request.param
    return engine, broker


def run_worker(pair: tuple[str, str], redis_server: RedisServer, folder: Path, *options: str) -> None:
    """Start a worker that writes into the folder the modules that it has loaded, and stop it."""
    engine, broker = pair
    prefix = f"t{uuid.uuid4().hex[:10]}"
    options = (*options, "--import", "loaded_modules")
    worker = Renewing(engine, broker_url(broker, redis_server), prefix, folder, options=options)
    try:
        worker.start()
    finally:
        worker.stop()
        print(worker.text())
        delete_queues(broker, prefix)


def test_a_worker_does_not_load_what_it_does_not_use(
    pair: tuple[str, str], redis_server: RedisServer, tmp_path: Path
) -> None:
    engine, broker = pair
    run_worker(pair, redis_server, tmp_path)
    loaded = set((tmp_path / "modules.txt").read_text().split())
    assert {f"penstock.workers.engines.{engine}.worker", "sqlalchemy", "kombu.connection"} <= loaded
    unused = [name for names in (*UNUSED.values(), OTHERS[engine], OTHERS[broker]) for name in names]
    assert not sorted(loaded & set(unused))


def test_processes_share_all_modules(pair: tuple[str, str], redis_server: RedisServer, tmp_path: Path) -> None:
    run_worker(pair, redis_server, tmp_path, "--processes", "2")
    imported = {path.name: path.read_text().split() for path in tmp_path.glob("since_fork_*.txt")}
    assert len(imported) == 2
    assert not any(imported.values()), imported
