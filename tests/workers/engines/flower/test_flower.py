"""Flower over workers of both engines."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from engine_jobs import Add, Break
from running import Running
from support.polling import until

from penstock.config.errors import ConfigError
from penstock.workers.engines.celery.flower_server import run_flower
from penstock.workers.local.up.redis_server import free_port

_RUN = (
    "import sys; from penstock.workers.engines.celery.flower_server import run_flower; "
    "sys.exit(run_flower(port=int(sys.argv[1])))"
)


class Flower:
    def __init__(self, port: int) -> None:
        self.port = port

    def get(self, path: str, login: str = "op:secret") -> Any:
        """Answer of its HTTP API; None while there is none."""
        authorization = "Basic " + base64.b64encode(login.encode()).decode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/{path}", headers={"Authorization": authorization}
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code
        except OSError:
            return None

    def tasks(self) -> dict[str, Any]:
        answer = self.get("api/tasks")
        return answer if isinstance(answer, dict) else {}


@contextmanager
def flower(worker: Running, folder: Path, port: int) -> Iterator[Flower]:
    environment = {
        **os.environ,
        "PENSTOCK_BROKER_URL": worker.settings.broker_url,
        "PENSTOCK_PREFIX": worker.settings.prefix,
        "PENSTOCK_FLOWER_BASIC_AUTH": "op:secret",
    }
    process = subprocess.Popen([sys.executable, "-c", _RUN, str(port)], env=environment, cwd=folder)
    try:
        served = Flower(port)
        until(lambda: served.get("api/workers?status=1") is not None, "Flower")
        yield served
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def test_flower_shows_workers_and_jobs_of_both_engines_and_remembers_them(
    start_worker: Callable[..., Running], tmp_path: Path
) -> None:
    workers = [start_worker("celery"), start_worker("dramatiq")]
    names = {worker.name for worker in workers}
    port = free_port()
    with flower(workers[0], tmp_path, port) as served:
        assert served.get("api/workers", login="op:wrong") == 401
        until(lambda: names <= {name for name, on in served.get("api/workers?status=1").items() if on}, "both online")
        inspected = until(
            lambda: (answer := served.get("api/workers?refresh=1")) and names <= answer.keys() and answer,
            "the inspection",
        )
        assert "engines.add" in inspected[workers[1].name]["registered"]

        added, broken = workers[0].producer.enqueue(Add(a=41)), workers[0].producer.enqueue(Break())
        until(lambda: served.tasks().get(added.id, {}).get("state") == "SUCCESS", "the success")
        until(lambda: served.tasks().get(broken.id, {}).get("state") == "FAILURE", "the failure")
        output = served.tasks()[added.id]
        assert output["name"] == "engines.add"
        assert output["kwargs"] == "{'a': 41, 'b': 1, 'card': '***'}"
        assert output["result"] == "42"
        assert output["retries"] == 0
        assert output["runtime"] is not None
        assert output["worker"] in names
        assert served.get("api/queues/length") == {
            "active_queues": [{"name": name, "messages": 0, "messages_ready": 0} for name in ("dispatcher", "engines")]
        }
        assert "it broke" in served.tasks()[broken.id]["exception"]

    with flower(workers[0], tmp_path, port) as served:
        assert {added.id, broken.id} <= served.tasks().keys(), "it remembers after a restart"


def test_a_login_of_another_form_is_refused() -> None:
    with pytest.raises(ConfigError, match="user:password"):
        run_flower(basic_auth="no-password")
