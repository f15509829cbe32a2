"""Flower in a process of its own, and asking it."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from running import Running
from support.polling import until

_RUN = (
    "import sys; from penstock.workers.engines.celery.flower_server import run_flower; "
    "sys.exit(run_flower(port=int(sys.argv[1])))"
)


class Flower:
    def __init__(self, port: int) -> None:
        self.port = port

    def get(self, path: str, login: str = "op:secret") -> Any:
        """Answer of its HTTP API; None while there is none."""
        return self.ask("GET", path, login)

    def post(self, path: str, login: str = "op:secret", body: bytes = b"", **headers: str) -> Any:
        """Answer of its HTTP API, or the status of a refusal."""
        return self.ask("POST", path, login, body, **headers)

    def ask(self, method: str, path: str, login: str = "op:secret", body: bytes | None = None, **headers: str) -> Any:
        authorization = {"Authorization": "Basic " + base64.b64encode(login.encode()).decode()} if login else {}
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/{path}", data=body, headers={**authorization, **named}, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                text = answer.read().decode()
                return json.loads(text) if "json" in answer.headers["Content-Type"] else text
        except urllib.error.HTTPError as error:
            with error:
                return error.code
        except OSError:
            return None

    def tasks(self) -> dict[str, Any]:
        answer = self.get("api/tasks")
        return answer if isinstance(answer, dict) else {}


@contextmanager
def flower(worker: Running, folder: Path, port: int, **more: str) -> Iterator[Flower]:
    """A Flower process over a worker's broker and ledger.

    Arguments:
        folder: its working directory.
        more: variables of its environment.
    """
    environment = {
        **os.environ,
        "PENSTOCK_BROKER_URL": worker.settings.broker_url,
        "PENSTOCK_PREFIX": worker.settings.prefix,
        "PENSTOCK_DATABASE_URL": worker.settings.database_url,
        "PENSTOCK_FLOWER_BASIC_AUTH": "op:secret",
        **more,
    }
    process = subprocess.Popen([sys.executable, "-c", _RUN, str(port)], env=environment, cwd=folder)
    try:
        served = Flower(port)
        until(lambda: served.get("healthcheck", login="") is not None, "Flower")
        yield served
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
