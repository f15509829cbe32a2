"""The gateway in a process of its own, under requests generated from its own OpenAPI document."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import hypothesis
import schemathesis
from hypothesis import HealthCheck, Phase
from support.ledgers import set_up
from support.polling import WAIT_SECONDS, until
from support.servers.processes import resident

from penstock.config.settings import Settings
from penstock.ledger.members import api_keys
from penstock.ledger.sql.database import Database
from penstock.producers.gateway import create_app
from penstock.producers.gateway.openapi import document
from penstock.workers.local.up.redis_server import RedisServer

GROWTH = 64 * 1024 * 1024
"""Bytes by which the process may grow after its first round."""


@dataclass
class FuzzedGateway:
    """A running gateway, and a key for everything."""

    port: int
    pid: int
    headers: dict[str, str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def fuzz(self, examples: int, seed: int | None = None) -> None:
        """Send requests to each operation; no answer may be a 5xx.

        Arguments:
            examples: requests of each operation.
            seed: None: the same requests each time.
        """
        app_document = document(create_app(Settings()))
        schema = schemathesis.openapi.from_dict(app_document).exclude(
            path_regex=r"^/v1/jobs/(?!email\.send$|report\.build$|\{)"  # two kinds are enough
        )
        for result in schema.get_all_operations():
            operation = result.ok()

            def send_generated(case: Any) -> None:
                response = case.call(base_url=self.url, headers=self.headers)
                assert response.status_code < 500, f"{case.as_curl_command()}\n{response.text}"

            run = hypothesis.given(operation.as_strategy())(send_generated)
            run = hypothesis.settings(
                max_examples=examples,
                derandomize=seed is None,
                deadline=None,
                database=None,
                phases=[Phase.generate, Phase.shrink],
                suppress_health_check=list(HealthCheck),
                print_blob=True,
            )(run)
            (run if seed is None else hypothesis.seed(seed)(run))()

    def memory(self) -> int:
        """Resident bytes."""
        return resident(self.pid)


@contextmanager
def gateway_process(folder: Path, redis_server: RedisServer) -> Iterator[FuzzedGateway]:
    """Run `penstock gateway` on a free port, with its ledger in the folder."""
    url = set_up(f"sqlite:///{folder}/fuzz.db")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    database = Database(url)
    text, _key = api_keys.add(database, "fuzz", kinds=["*"])
    settings = {
        "PENSTOCK_BROKER_URL": redis_server.url,
        "PENSTOCK_DATABASE_URL": url,
        "PENSTOCK_STORAGE_URL": f"file:{folder}/storage",
        "PENSTOCK_PREFIX": "fuzz",
    }
    command = [Path(sys.executable).with_name("penstock"), "gateway", "--port", str(port), "--log-level", "ERROR"]
    process = subprocess.Popen(command, env=os.environ | settings, cwd=folder)
    try:

        def is_up() -> bool:
            try:
                return httpx.get(f"http://127.0.0.1:{port}/live", timeout=WAIT_SECONDS).status_code == 200
            except httpx.TransportError:
                return False

        until(is_up, "the gateway", unless=lambda: process.poll() is not None and "it ended")
        yield FuzzedGateway(port, process.pid, {"Authorization": f"Bearer {text}"})
    finally:
        process.terminate()
        process.wait(WAIT_SECONDS)
        database.close()
