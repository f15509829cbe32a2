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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from running import Running
from support.polling import until
from support.servers.forked import Forked, importer

_HERE = Path(__file__).parent
_IMPORTED_FROM = os.pathsep.join(map(str, (_HERE.parent / "apps", _HERE / "console", _HERE.parents[2])))
"""Folders with modules of kinds."""
_MODULE = "penstock.workers.engines.celery.flower"


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

    def send(self, act: str, body: Any, login: str = "op:secret") -> Any:
        """The answer of an act of the console."""
        status, answer = self.refusal(act, body, login)
        assert status == 200, answer
        return answer

    def refusal(self, act: str, body: Any, login: str = "op:secret") -> tuple[int, Any]:
        """Status and JSON of the answer of an act of the console."""
        authorization = "Basic " + base64.b64encode(login.encode()).decode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/api/penstock/{act}",
            data=json.dumps(body).encode(),
            headers={"Authorization": authorization, "Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())

    def tasks(self) -> dict[str, Any]:
        answer = self.get("api/tasks")
        return answer if isinstance(answer, dict) else {}


@contextmanager
def serving(
    folder: Path, port: int, variables: Mapping[str, str], imports: Sequence[str] = (), *, command: bool = False
) -> Iterator[Flower]:
    """A Flower process.

    Arguments:
        folder: its working directory.
        variables: of its environment.
        command: start it as an operator would; False: fork it from a process that has imported it.
    """
    environment = {**os.environ, "PYTHONPATH": _IMPORTED_FROM, **variables}
    process: subprocess.Popen[bytes] | Forked
    if command:
        options = [option for module in imports for option in ("--import", module)]
        words = [sys.executable, "-m", "penstock", "flower", "--port", str(port), *options]
        process = subprocess.Popen(words, env=environment, cwd=folder)
    else:
        arguments = {"port": port, "imports": list(imports)}
        process = importer(f"{_MODULE}.server", f"{_MODULE}.serving").start(
            f"{_MODULE}.server:run_flower", environment=environment, folder=folder, **arguments
        )
    try:
        served = Flower(port)
        answers = lambda: served.get("healthcheck", login="") is not None  # noqa: E731
        until(answers, "Flower", unless=lambda: "its process has ended" if process.poll() is not None else None)
        yield served
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


@contextmanager
def flower(
    worker: Running, folder: Path, port: int, *, imports: Sequence[str] = (), command: bool = False, **more: str
) -> Iterator[Flower]:
    """A Flower process over a worker's broker and ledger.

    Arguments:
        folder: its working directory.
        imports: modules with kinds.
        command: see `serving`.
        more: variables of its environment.
    """
    variables = {
        "PENSTOCK_BROKER_URL": worker.settings.broker_url,
        "PENSTOCK_PREFIX": worker.settings.prefix,
        "PENSTOCK_DATABASE_URL": worker.settings.database_url,
        "PENSTOCK_FLOWER_BASIC_AUTH": "op:secret",
        **more,
    }
    with serving(folder, port, variables, imports, command=command) as served:
        yield served
