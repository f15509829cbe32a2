"""`log_format` of the servers: the lines of `penstock gateway` and `penstock flower`."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.polling import until
from support.stack import PENSTOCK

from penstock.ledger.sql.database import Database
from penstock.workers.local.up.redis_server import free_port


@contextmanager
def lines_of(folder: Path, *command: str, log_format: str) -> Iterator[list[str]]:
    """The log of a server that runs meanwhile, from its start to its first request."""
    path, port = folder / "server.log", free_port()
    environment = {**os.environ, "PENSTOCK_LOG_FORMAT": log_format, "FLOWER_BASIC_AUTH": "ops:secret"}
    with path.open("w") as log:
        server = subprocess.Popen(
            [PENSTOCK, *command, "--port", str(port)], cwd=folder, env=environment, stdout=log, stderr=log
        )
    try:
        yield until(
            lambda: [line for line in path.read_text().splitlines() if str(port) in line], "a line of its start"
        )
    finally:
        server.kill()  # how it stops is not the subject here
        server.wait()


@pytest.mark.parametrize("command", ["gateway", "flower"])
def test_a_server_logs_in_the_format_that_is_set(workplace: Path, ledger: Database, command: str) -> None:
    with lines_of(workplace, command, log_format="json") as lines:
        records = [json.loads(line) for line in lines]
        assert all({"event", "level", "logger", "timestamp"} <= record.keys() for record in records)
    with lines_of(workplace, command, log_format="text") as lines:
        assert not any(line.startswith("{") for line in lines)
