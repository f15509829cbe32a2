"""The inline kit, and the fixture in a pytest of its own."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest
from producers.testing.kit_jobs import Alone, Broken, Invoice, Receipt, async_producer, producer, run

from penstock.config.settings import Settings
from penstock.producers.testing import testing

# Inline.


def test_inline_runs_each_job_as_it_is_enqueued() -> None:
    with testing(Settings(), inline=True) as kit:
        assert producer.enqueue(Invoice(n=1)).result() == "invoice 1"
        producer.enqueue(Alone(n=1))
        kit.refute_enqueued()
        producer.enqueue(Receipt(n=1), delay=60)
        kit.assert_enqueued(Receipt, count=1)
        with pytest.raises(Broken):
            producer.enqueue(Invoice(n=-1))

        async def app() -> Any:
            handle = await async_producer.enqueue(Receipt(n=7))
            return await handle.result()

        assert asyncio.run(app()) == 7


# The plugin.

PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error"]


def test_pytest_has_the_fixture(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text("""
import pytest
from penstock.config.settings import Settings

@pytest.fixture
def penstock_settings():
    return Settings(prefix="own")
""")
    (tmp_path / "test_app.py").write_text("""
import unittest
from penstock.config.settings import Settings
from penstock.producers import Producer
from penstock.producers.testing import testing
from penstock.schemas import Job
from penstock.workers import handles

producer = Producer("redis://127.0.0.1:1/0")

class Ping(Job, kind="kit.ping"):
    n: int

@handles(Ping)
async def ping(job: Ping, settings: Settings) -> str:
    return f"{settings.prefix} {job.n}"

def test_fixture(penstock):
    producer.enqueue(Ping(n=1))
    penstock.assert_enqueued(Ping, n=1)
    assert [one.result for one in penstock.drain()] == ["own 1"]

def test_failure(penstock):
    producer.enqueue(Ping(n=1))
    penstock.assert_enqueued(Ping, n=2)

class TestOld(unittest.TestCase):
    def setUp(self):
        self.penstock = self.enterContext(testing())

    def test_it(self):
        producer.enqueue(Ping(n=3))
        self.penstock.assert_enqueued(Ping, n=3)
""")
    result = run([*PYTEST, "test_app.py"], tmp_path)
    assert "1 failed, 2 passed" in result
    assert "Ping(n=1)" in result
    assert "matching.py" not in result, "the traceback ends in the test"


def test_a_test_that_does_not_ask_for_it_loads_nothing(tmp_path: Path) -> None:
    (tmp_path / "test_app.py").write_text("""
import sys

def test_it():
    assert "pytest_penstock" in sys.modules
    assert [name for name in sys.modules if name.split(".")[0] in ("penstock", "pydantic", "sqlalchemy")] == []
""")
    assert "1 passed" in run([*PYTEST, "test_app.py", "-p", "no:hypothesispytest"], tmp_path)


def test_memory_needs_no_sql(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("""
import sys
sys.modules["sqlalchemy"] = None
from penstock.config.errors import ConfigError
from penstock.producers import Producer
from penstock.producers.testing import testing
from penstock.schemas import Job

class Ping(Job, kind="kit.ping"):
    n: int

with testing() as penstock:
    Producer("redis://127.0.0.1:1/0").enqueue(Ping(n=1), delay=60)
    penstock.assert_enqueued(Ping, n=1, delay=60)
    try:
        penstock.drain()
    except ConfigError as error:
        print(error)
""")
    assert "install penstock[sql]" in run([sys.executable, "app.py"], tmp_path)
