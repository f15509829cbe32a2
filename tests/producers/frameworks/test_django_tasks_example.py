"""`examples/adopt/django-tasks` runs unchanged on its own backend and on ours, on both brokers and both engines."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sites import EXAMPLES, environment
from support.ledgers import upgraded
from support.polling import SETTLE_SECONDS, WAIT_SECONDS, until

from penstock.config.settings import Settings
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import dead_letters, jobs

PROJECT = EXAMPLES / "adopt" / "django-tasks"
STOCK = [("db_worker", "--queue-name", "*", "--interval", "0.1")]


class Project:
    """The project with a database of its own."""

    def __init__(self, settings_module: str, settings: Settings, folder: Path) -> None:
        self.environment = environment(settings, folder / "shop.db") | {
            "DJANGO_SETTINGS_MODULE": f"shop.{settings_module}",
            "PYTHONPATH": "",
        }
        self._folder = folder
        self.manage("migrate", "-v", "0")

    def manage(self, *words: str) -> str:
        done = subprocess.run(
            [sys.executable, PROJECT / "manage.py", *words],
            cwd=self._folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=SETTLE_SECONDS,
        )
        assert done.returncode == 0, done.stdout + done.stderr + self.logs()
        return done.stdout

    def logs(self) -> str:
        return "".join(path.read_text(errors="replace")[-4000:] for path in self._folder.glob("*.log"))

    @contextmanager
    def running(self, *commands: tuple[str, ...]) -> Iterator[None]:
        processes = []
        for number, command in enumerate(commands):
            with (self._folder / f"{number}.log").open("wb") as log:
                words = [sys.executable, PROJECT / "manage.py", *command]
                processes.append(
                    subprocess.Popen(words, cwd=self._folder, env=self.environment, stdout=log, stderr=log)
                )
        try:
            yield
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                try:
                    process.wait(WAIT_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def check(report: dict[str, Any]) -> None:
    """The outcome is the same, whatever runs the tasks."""
    assert (report["pack"]["status"], report["pack"]["value"]["fragile"]) == ("SUCCESSFUL", True)
    assert (report["mail"]["value"], report["mail"]["queue"]) == ("Ada: Your order is packed", "mails")
    assert (report["mail"]["priority"], report["pack"]["priority"]) == (10, 0)
    assert (report["later"]["value"], report["later"]["in_time"]) == ("Ada: Are you content?", True)
    assert (report["refund"]["status"], report["refund"]["errors"]) == ("FAILED", ["CardRefused"])
    assert report["order"] == {"state": "packed", "mails": 2, "orders": 1}


def test_project_runs_on_its_own_backend(tmp_path: Path) -> None:
    project = Project("settings", Settings(), tmp_path)
    with project.running(*STOCK):
        report = json.loads(project.manage("try_out"))
    check(report)
    assert (report["charge"]["status"], report["charge"]["attempts"]) == ("FAILED", 1)


@pytest.mark.parametrize(
    ("engine", "pool", "broker"),
    [
        ("celery", "threads", "redis_url"),
        pytest.param("dramatiq", "processes", "amqp_url", marks=pytest.mark.rabbitmq),
    ],
)
def test_project_runs_on_penstock(
    engine: str, pool: str, broker: str, request: pytest.FixtureRequest, prefix: str, sqlite_url: str, tmp_path: Path
) -> None:
    settings = Settings(
        broker_url=request.getfixturevalue(broker),
        database_url=upgraded(sqlite_url),
        storage_url=f"file:{tmp_path}/storage",
        outbox_urls=(f"sqlite:///{tmp_path}/shop.db",),
        prefix=prefix,
    )
    queues = "\n".join(f'[queues.{queue}]\nengine = "{engine}"' for queue in ("default", "mails"))
    (tmp_path / "penstock.toml").write_text(queues)
    project = Project("on_penstock", settings, tmp_path)
    project.environment["PENSTOCK_CONFIG"] = str(tmp_path / "penstock.toml")
    with project.running(("penstock", "worker", "--engine", engine, "--pool", pool), ("penstock", "dispatcher")):
        report = json.loads(project.manage("try_out"))
        check(report)
        charge = report["charge"]
        assert (charge["value"], charge["attempts"], charge["errors"]) == (2, 2, ["ConnectionError"])
        ledger = Database(settings.database_url)
        try:
            letters = until(lambda: ledger.read(lambda connection: connection.execute(dead_letters.select()).all()))
            kinds = {row.kind for row in ledger.read(lambda connection: connection.execute(jobs.select()).all())}
        finally:
            ledger.close()
    assert [letter.kind for letter in letters] == ["shop.tasks.refund"]
    assert kinds == {f"shop.tasks.{name}" for name in ("pack", "write_mail", "charge", "refund")}
    listed = json.loads(project.manage("penstock", "jobs", "list", "--kind", "shop.tasks.charge", "--json"))
    assert [(job["kind"], job["failures"]) for job in listed] == [("shop.tasks.charge", 1)]
