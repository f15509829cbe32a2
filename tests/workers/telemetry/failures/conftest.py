from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.servers.shared import broker_url
from support.stack import PAIRS, Stack, lines, stopped_at_the_end

from penstock.workers.local.up.redis_server import RedisServer

sys.path.append(str(Path(__file__).parent))

SCHEDULE = '[schedules."Nightly run"]\nkind = "reported.nightly"\ncron = "0 3 * * *"\ntimezone = "Europe/Berlin"\n'


class Reported(Stack):
    """A worker and a dispatcher of an application that uses Sentry, with their logs as JSON."""

    def start(self) -> Reported:
        (self.folder / "penstock.toml").write_text(SCHEDULE)
        self.start_dispatcher()
        self.start_worker()
        return self

    def start_worker(self, concurrency: int = 10) -> subprocess.Popen[bytes]:
        options = ["--queues", "reported", "--concurrency", str(concurrency), "--log-jobs"]
        return self.run(["worker", "--engine", self.engine, *options, "--import", "reported_jobs"])

    def start_dispatcher(self) -> subprocess.Popen[bytes]:
        return self.run(["dispatcher", "--import", "reported_jobs"])

    def run(self, command: Any, **changes: str) -> subprocess.Popen[bytes]:
        path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[3])])
        changes = {"PYTHONPATH": path, "PENSTOCK_LOG_FORMAT": "json", "REPORTED_SENTRY": "app"} | changes
        return super().run(command, **changes)

    def log(self, **fields: Any) -> list[dict[str, Any]]:
        """Lines of all processes' logs that have these fields."""
        texts = [line for file in sorted(self.folder.glob("*.log")) for line in lines(file)]
        records = [json.loads(text) for text in texts if text.startswith("{") and text.endswith("}")]
        return [record for record in records if fields.items() <= record.items()]

    def events(self, job_id: str | None = None) -> list[dict[str, Any]]:
        """Events that Sentry's transport got, of one job or all."""
        events = [json.loads(line) for line in lines(self.folder / "sentry.jsonl")]
        events = [event for event in events if event["item"] == "event"]
        return [e for e in events if job_id is None or e.get("contexts", {}).get("job", {}).get("id") == job_id]

    def check_ins(self) -> list[dict[str, Any]]:
        return [event for event in map(json.loads, lines(self.folder / "sentry.jsonl")) if event["item"] == "check_in"]

    def hooked(self, job_id: str) -> list[dict[str, Any]]:
        """Failures of a job that the hook was called with."""
        return [
            failure for failure in map(json.loads, lines(self.folder / "hooked.jsonl")) if failure["job_id"] == job_id
        ]


@pytest.fixture(scope="module", params=PAIRS, ids="-".join)
def stack(
    request: pytest.FixtureRequest, redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Reported]:
    """A running stack of each engine on each broker, shared by a module's tests."""
    engine, broker = request.param
    prefix = f"t{uuid.uuid4().hex[:10]}"
    stack = Reported(engine, broker_url(broker, redis_server), prefix, tmp_path_factory.mktemp("reported")).start()
    with stopped_at_the_end(stack, broker, request.session):
        yield stack
