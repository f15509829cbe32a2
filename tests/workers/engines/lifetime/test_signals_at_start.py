"""SIGTERM while a process starts: it ends at any moment, whether its broker answers or not."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.ledgers import set_up
from support.polling import WAIT_SECONDS, until
from support.stack import PENSTOCK

from penstock.workers.local.up.redis_server import RedisServer, free_port

pytestmark = pytest.mark.slow

COMMANDS = {
    "celery": (["worker", "--engine", "celery", "--queues", "idle"], "consumes idle"),
    "dramatiq": (["worker", "--engine", "dramatiq", "--queues", "idle"], "consumes idle"),
    "renewing": (["worker", "--engine", "dramatiq", "--queues", "idle", "--max-jobs", "9"], "consumes idle"),
    "dispatcher": (["dispatcher"], "dispatcher runs"),
    "gateway": (["gateway", "--port", "{port}"], "Uvicorn running"),
    "flower": (["flower", "--port", "{port}"], "Flower listens"),
}
"""Name → the command, and what its log says when it has started."""
MOMENTS = 5
ORDERLY = (0, -signal.SIGTERM, 128 + signal.SIGTERM)
"""Exit codes: stopped in order, or before it, or the process below a parent, handled signals."""


class Start:
    """A process of one of the commands."""

    def __init__(self, name: str, folder: Path, environment: Mapping[str, str]) -> None:
        words, self.started = COMMANDS[name]
        self.log = folder / f"{name}.log"
        command = [PENSTOCK, *(word.format(port=free_port()) for word in words)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, env=os.environ | environment, cwd=folder, stdout=log, stderr=log)

    def has_started(self) -> bool:
        return self.started in self.log.read_text()

    def terminate(self) -> int:
        """The exit code after SIGTERM."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(WAIT_SECONDS)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it goes on after SIGTERM: {self.log.read_text()[-3000:]}") from None


@contextmanager
def starting(name: str, folder: Path, environment: Mapping[str, str]) -> Iterator[Start]:
    start = Start(name, folder, environment)
    try:
        yield start
    finally:
        start.process.kill()
        start.process.wait()


@pytest.fixture
def environment(tmp_path: Path, prefix: str) -> dict[str, str]:
    return {
        "PENSTOCK_DATABASE_URL": set_up(f"sqlite:///{tmp_path}/ledger.db"),
        "PENSTOCK_PREFIX": prefix,
        "PENSTOCK_STOCK_QUEUES": "[]",
        "PENSTOCK_FLOWER_BASIC_AUTH": "op:secret",
    }


@pytest.mark.parametrize("name", COMMANDS)
def test_sigterm_at_any_moment_of_the_start_ends_the_process(
    name: str, redis_server: RedisServer, environment: dict[str, str], tmp_path: Path
) -> None:
    environment["PENSTOCK_BROKER_URL"] = redis_server.url
    began = time.monotonic()
    with starting(name, tmp_path, environment) as start:
        until(start.has_started, unless=lambda: start.process.poll() is not None and start.log.read_text())
        seconds = time.monotonic() - began
        assert start.terminate() == 0, start.log.read_text()
    for moment in range(MOMENTS):
        with starting(name, tmp_path, environment) as start:
            time.sleep(seconds * (moment + 1) / MOMENTS)
            assert start.terminate() in ORDERLY, start.log.read_text()


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "gateway"])  # which connects when it must
def test_sigterm_ends_a_process_whose_broker_does_not_answer(
    name: str, scheme: str, environment: dict[str, str], tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        environment["PENSTOCK_BROKER_URL"] = f"{scheme}://127.0.0.1:{silent.getsockname()[1]}/"
        with starting(name, tmp_path, environment) as start:
            silent.settimeout(WAIT_SECONDS)
            connection, _ = silent.accept()
            with connection:
                assert start.terminate() in ORDERLY, start.log.read_text()
