"""An engine on a broker, started as an operator would: `penstock worker` and `penstock dispatcher`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest
import sqlalchemy as sa

from penstock.config.settings import Settings
from penstock.ledger.members.heartbeats import DISPATCHER
from penstock.ledger.members.overview import MemberStatus, read_members
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import dead_letters, jobs
from penstock.producers import Producer
from penstock.workers.engines.inline import Inline
from support.ledgers import upgraded
from support.polling import WAIT_SECONDS, until
from support.servers.forked import Forked, importer
from support.servers.shared import delete_queues

PENSTOCK = Path(sys.executable).parent / "penstock"
TESTS = Path(__file__).parent.parent
Process = subprocess.Popen[bytes] | Forked
_MODULES = {
    "worker": "penstock.workers.engines.{engine}.worker",
    "dispatcher": "penstock.workers.dispatcher.dispatcher",
    "gateway": "penstock.producers.gateway",
    "flower": "penstock.workers.engines.celery.flower.serving",
}
"""What a command imports besides the command line."""
PAIRS = [("celery", "redis"), ("celery", "rabbitmq"), ("dramatiq", "redis"), ("dramatiq", "rabbitmq")]


S = TypeVar("S", bound="Stack")


class Stack:
    """Workers of an engine, a dispatcher, a ledger and a producer, over a broker.

    Attributes:
        engine: `inline`, `celery` or `dramatiq`.
        stock_queue: the queue that stock Celery clients of this stack send to.
        dramatiq_queue: the queue that stock Dramatiq clients send to. On RabbitMQ the two clients declare theirs
            differently.

    Arguments:
        database_url: of an empty database; None: SQLite in the folder.
    """

    def __init__(
        self,
        engine: str,
        broker_url: str,
        prefix: str,
        folder: Path,
        *,
        lease_seconds: float = 3.0,
        database_url: str | None = None,
    ) -> None:
        self.engine, self.folder, self.broker_url = engine, folder, broker_url
        self.stock_queue, self.dramatiq_queue = f"{prefix}-stock", f"{prefix}-actors"
        self.settings = Settings(
            broker_url=broker_url,
            database_url=database_url or f"sqlite:///{folder}/ledger.db",
            storage_url=f"file:{folder}/storage",
            smtp_url=f"maildir:{folder}/mail",
            prefix=prefix,
            stock_queues=(self.stock_queue, self.dramatiq_queue),
            lease_seconds=lease_seconds,
            grace_seconds=20,
            unknown_kind_grace=timedelta(),
        )
        self.database = Database(upgraded(self.settings.database_url))
        self.inline: Inline | None = None
        self.processes: list[Process] = []
        if engine == "inline":
            self.inline = Inline(self.settings, queues=["acme"])
            self.producer = self.inline.producer
        else:
            self.producer = Producer.from_settings(self.settings)

    def start(self) -> Stack:
        if self.inline is not None:
            self.inline.start()
        else:
            self.start_dispatcher()
            self.start_worker()
        return self

    def start_worker(self, concurrency: int = 20) -> Process:
        return self.run(
            ["worker", "--engine", self.engine, "--queues", "acme"]
            + ["--concurrency", str(concurrency), "--import", "acme"]
        )

    def start_dispatcher(self) -> Process:
        return self.run(["dispatcher", "--import", "acme"])

    def run(self, command: Sequence[str], **changes: str) -> Process:
        """Start `penstock` with the stack's settings as its environment, and these changes to it.

        It is forked from a process that has imported what it needs, unless a change is for the start of a program.
        """
        settings = self.settings
        env = os.environ | {
            "PENSTOCK_BROKER_URL": settings.broker_url,
            "PENSTOCK_DATABASE_URL": settings.database_url,
            "PENSTOCK_STORAGE_URL": settings.storage_url,
            "PENSTOCK_SMTP_URL": settings.smtp_url,
            "PENSTOCK_PREFIX": settings.prefix,
            "PENSTOCK_STOCK_QUEUES": json.dumps(settings.stock_queues),
            "PENSTOCK_LEASE_SECONDS": str(settings.lease_seconds),
            "PENSTOCK_GRACE_SECONDS": str(settings.grace_seconds),
            "PENSTOCK_UNKNOWN_KIND_GRACE": f"{settings.unknown_kind_grace.total_seconds()}s",
            "PYTHONPATH": os.pathsep.join([str(TESTS / "conformance"), str(TESTS / "conformance/outages")]),
            **changes,
        }
        log = (self.folder / f"{command[0]}-{len(self.processes)}.log").open("wb")
        process: Process
        with log:
            if "LD_PRELOAD" in changes:
                process = subprocess.Popen(
                    [PENSTOCK, *command], env=env, cwd=self.folder, stdout=log, stderr=log, start_new_session=True
                )
            else:
                modules = importer("penstock.workers.cli", _MODULES[command[0]].format(engine=self.engine))
                process = modules.start(
                    "penstock.__main__:main", PENSTOCK, *command, environment=env, folder=self.folder, log=log
                )
        self.processes.append(process)
        return process

    def stop_process(self, process: Process, number: int = signal.SIGTERM) -> int:
        process.send_signal(number)
        return process.wait(WAIT_SECONDS)

    def stop(self) -> None:
        self.producer.close()
        if self.inline is not None:
            self.inline.stop()
        for process in reversed(self.processes):
            if process.poll() is None:
                process.terminate()
        for process in self.processes:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.database.close()

    def logs(self) -> str:
        return "\n".join(f"== {log.name}\n{log.read_text()[-3000:]}" for log in sorted(self.folder.glob("*.log")))

    def live_workers(self) -> list[MemberStatus]:
        """Workers that are alive, without dispatchers."""
        members = read_members(self.database, self.settings.lease)
        return [each for each in members if each.state == "running" and each.member.engine != DISPATCHER]

    def wait_for_beats(self) -> None:
        """Wait until each live worker has read the ledger twice since now, and so obeys what was written before."""
        for _ in range(2):
            before = {each.member.name: each.last_beat for each in self.live_workers()}
            until(
                lambda before=before: all(
                    each.last_beat > before.get(each.member.name, each.last_beat - self.settings.lease)
                    for each in self.live_workers()
                ),
                "beats of the workers",
            )

    def row(self, job_id: str) -> Any:
        return self.database.read(
            lambda connection: connection.execute(sa.select(jobs).where(jobs.c.id == job_id)).first()
        )

    def letter(self, job_id: str) -> Any:
        select = sa.select(dead_letters).where(dead_letters.c.id == job_id)
        return self.database.read(lambda connection: connection.execute(select).first())

    def letters(self, reason: str) -> list[Any]:
        select = sa.select(dead_letters).where(dead_letters.c.reason == reason)
        return list(self.database.read(lambda connection: connection.execute(select).all()))


@contextmanager
def stopped_at_the_end(stack: S, broker: str, session: pytest.Session) -> Iterator[S]:
    """Stop a stack after its tests, show its logs if a test of this run has failed, and delete its queues."""
    yield stack
    failed = session.testsfailed
    stack.stop()
    if failed:
        print(stack.logs())
    delete_queues(broker, stack.settings.prefix)


def lines(file: Path) -> list[str]:
    """The whole lines of a file that others may be writing: not one whose end is missing."""
    return file.read_text().rpartition("\n")[0].splitlines() if file.exists() else []


def faketime_library() -> Path | None:
    """The library that gives a process a clock of its own; None where it is not installed."""
    folders = Path("/usr/lib")
    places = [*folders.glob("*/faketime/libfaketimeMT.so.1"), *folders.glob("faketime/libfaketimeMT*")]
    return places[0] if places else None
