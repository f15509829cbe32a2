"""200 simulated workers: their rows and heartbeats in the ledger, and the events of Celery that so many would send."""

from __future__ import annotations

import importlib.util
import re
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from served import Flower
from support.ledgers import Note, claimed, message
from support.polling import until

from penstock.ledger.members import heartbeats
from penstock.ledger.sql.database import Database
from penstock.workers.engines.celery.flower.page import Page
from penstock.workers.engines.celery.flower.pages import HANDLERS
from penstock.workers.local.up.redis_server import RedisServer

WORKERS = 200
JOBS_PER_SECOND = 3000
"""Three events each."""
LEASE = timedelta(hours=1)
PATHS = sorted(
    handler.path.lstrip("/") for handler in HANDLERS if issubclass(handler, Page) and "(" not in handler.path
)
FLOWERS_OWN = ("broker", "api/workers", "api/tasks", "metrics")


@pytest.fixture
def console(start_console: Callable[..., Flower], own_redis: RedisServer) -> Flower:
    """A console on a Redis of its own: events of other tests' workers go through their Redis to all who listen."""
    return start_console(PENSTOCK_BROKER_URL=own_redis.url)


@pytest.fixture
def flood(own_redis: RedisServer) -> Iterator[threading.Thread]:
    """Events of jobs at a high rate, and a heartbeat of each worker every two seconds."""
    flood = _benchmark().Flood(own_redis.url, 600, JOBS_PER_SECOND)
    flood.start()
    yield flood
    flood.stop()
    assert flood.rate > 0


@pytest.fixture
def names(ledger: Database) -> list[str]:
    """Names of the workers, of both engines in turn; the first one runs a job."""
    names = [f"celery@worker-{number}" for number in range(WORKERS)]
    for number, name in enumerate(names):
        engine = ("celery", "dramatiq")[number % 2]
        kinds = {"ledger.note": "notes"}
        heartbeats.register(ledger, name, engine=engine, queues=["notes"], kinds=kinds, lease=LEASE)
    claimed(ledger, message(Note()), worker=names[0])
    return names


@pytest.mark.timeout(600)
def test_every_page_answers_while_200_workers_send_events(
    names: list[str], console: Flower, flood: threading.Thread, ledger: Database, open_page: Callable[..., Any]
) -> None:
    until(lambda: set(console.get("api/workers?status=1") or ()) >= set(names), "all workers by their events")
    page = open_page("workers")
    card = page.locator("article", has_text=re.compile(r"^\s*Workers"))
    assert card.locator(".metric-value").inner_text() == str(WORKERS)
    assert page.locator("tbody tr").count() == WORKERS
    for path in (*PATHS, *FLOWERS_OWN):
        answer = console.get(path)
        assert answer is not None, path
        assert not isinstance(answer, int), (path, answer)
    listed = console.get("api/penstock/workers")["workers"]
    assert {worker["name"] for worker in listed} == set(names)
    assert {worker["state"] for worker in listed} == {"running"}
    assert [worker["name"] for worker in listed if worker["running"]] == names[:1]
    for name in names:
        heartbeats.beat(ledger, name, lease=LEASE)
    page.wait_for_function("document.getElementById('console-live-text').textContent === 'Live'", timeout=90_000)
    assert flood.is_alive(), "the events went on all the while"
    assert page.locator("tbody tr").count() == WORKERS


def _benchmark() -> ModuleType:
    """The program that measures the same at full rate; benchmarks are not on the tests' path."""
    file = Path(__file__).parents[6] / "benchmarks" / "programs" / "console_events.py"
    spec = importlib.util.spec_from_file_location("console_events", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
