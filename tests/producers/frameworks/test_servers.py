"""A producer where web servers put it: forked after it was used, in many threads, behind a firewall that forgets."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from sites import BIN
from support.brokers import Arrivals
from support.ledgers import Note
from support.polling import WAIT_SECONDS, until
from support.servers.proxy import Proxy

from penstock.producers import AsyncProducer, Producer
from penstock.producers.senders.rabbitmq import sender
from penstock.producers.senders.redis import async_connections, connections
from penstock.workers.brokers import Consumer, open_consumer
from penstock.workers.local.up.redis_server import free_port

APP = """
from flask import Flask, request
from penstock.producers import Producer
from penstock.producers.contrib.flask import Penstock
from penstock.schemas import Job

class Note(Job, kind="ledger.note", queue="notes"):
    text: str = ""

app = Flask(__name__)
penstock = Penstock(app)
with app.app_context():
    penstock.producer.enqueue(Note(text="before the fork"))  # connected, in the process that forks the workers

@app.post("/notes")
def note():
    return penstock.producer.enqueue(Note(text=request.data.decode())).id
"""


@pytest.fixture(params=["redis", pytest.param("rabbitmq", marks=pytest.mark.rabbitmq)])
def broker_url(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue({"redis": "redis_url", "rabbitmq": "amqp_url"}[request.param]))


@pytest.fixture
def consumer(broker_url: str, prefix: str) -> Iterator[Consumer]:
    consumer = open_consumer(broker_url, ["notes"], name=f"c-{uuid.uuid4().hex}", prefix=prefix)
    consumer.open()
    yield consumer
    consumer.close()


def test_gunicorn_may_fork_after_the_application_was_loaded_and_its_producer_used(
    broker_url: str, prefix: str, consumer: Consumer, tmp_path: Path
) -> None:
    (tmp_path / "app.py").write_text(APP)
    port, log = free_port(), tmp_path / "gunicorn.log"
    command = [
        *(BIN / "gunicorn", "--preload", "--workers", "3", "--threads", "8", "--no-control-socket"),
        *("--bind", f"127.0.0.1:{port}", "app:app"),
    ]
    environment = os.environ | {"PENSTOCK_BROKER_URL": broker_url, "PENSTOCK_PREFIX": prefix}
    with log.open("wb") as out:
        server = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=out, stderr=out)

    client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)

    def answers() -> bool:
        with contextlib.suppress(httpx.TransportError):
            return client.get("/penstock/ready").status_code == 200
        return False

    def send(number: int) -> str:
        answer = client.post("/notes", content=str(number))
        assert answer.status_code == 200, answer.text
        return answer.text

    try:
        until(answers, unless=lambda: server.poll() is not None and log.read_text())
        with ThreadPoolExecutor(16) as pool:
            sent = list(pool.map(send, range(80)))
        ids = Arrivals(consumer).wait_for(81)
        assert len(ids) == 81
        assert set(sent) < set(ids)
    finally:
        client.close()
        server.send_signal(signal.SIGTERM)
        server.wait(WAIT_SECONDS)
    assert "Traceback" not in log.read_text()


class Firewall(Proxy):
    """Forgets connections: what comes over them from then on is dropped, without a word to either end."""

    def __init__(self, target: int) -> None:
        self._age = 0
        super().__init__(target)

    def forget(self) -> None:
        self._age += 1

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        there, other = await asyncio.open_connection("127.0.0.1", self._target)
        self._writers |= {writer, other}
        await asyncio.gather(self._pass(reader, other, self._age), self._pass(there, writer, self._age))
        self._writers -= {writer, other}
        self._tasks.discard(task)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, age: int) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if age == self._age:
                    writer.write(data)
                    await writer.drain()
        writer.transport.abort()


@pytest.fixture
def firewall(broker_url: str) -> Iterator[Firewall]:
    firewall = Firewall(urlsplit(broker_url).port or 0)
    yield firewall
    firewall.close()


@pytest.fixture
def through(firewall: Firewall, broker_url: str) -> str:
    """The broker's URL, through the firewall."""
    return broker_url.replace(f":{urlsplit(broker_url).port}", f":{firewall.port}")


def long_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an hour pass for every connection."""
    for module in (sender, connections, async_connections):
        monkeypatch.setattr(module, "TRUST_IDLE_SECONDS", -3600.0)


def test_a_producers_connection_that_a_firewall_forgot_while_it_idled_is_not_used(
    firewall: Firewall, through: str, prefix: str, consumer: Consumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Producer(through, prefix=prefix, timeout=20) as producer:
        sent = [producer.enqueue(Note()).id]
        with ThreadPoolExecutor(4) as pool:
            barrier = threading.Barrier(4)

            def enqueue_together(_: int) -> str:
                barrier.wait(WAIT_SECONDS)
                return producer.enqueue(Note()).id

            sent += pool.map(enqueue_together, range(4))
            firewall.forget()
            long_ago(monkeypatch)
            sent += pool.map(enqueue_together, range(4))  # one that was used all the same would fail after the timeout
        assert sorted(Arrivals(consumer).wait_for(9)) == sorted(sent)


def test_nor_is_that_of_an_async_one(
    firewall: Firewall, through: str, prefix: str, consumer: Consumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> list[str]:
        async with AsyncProducer(through, prefix=prefix, timeout=20) as producer:
            sent = [await producer.enqueue(Note())]
            firewall.forget()
            long_ago(monkeypatch)
            sent += await asyncio.gather(*(producer.enqueue(Note()) for _ in range(4)))
            return [handle.id for handle in sent]

    assert sorted(asyncio.run(run())) == sorted(Arrivals(consumer).wait_for(5))
