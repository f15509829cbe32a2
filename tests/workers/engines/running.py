"""Starting real workers, and asking them as any Celery client would."""

from __future__ import annotations

import os
import signal
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import celery
from engine_jobs import Add
from support.ledgers import upgraded
from support.polling import WAIT_SECONDS, until
from support.servers.forked import Forked, importer

from penstock.config.settings import Settings
from penstock.ledger.sql.database import Database
from penstock.producers import Producer

HERE = Path(__file__).parent
T = TypeVar("T")
PAIRS = [("celery", "redis"), ("celery", "rabbitmq"), ("dramatiq", "redis"), ("dramatiq", "rabbitmq")]


class Running:
    """A worker process of an engine, with its producer, ledger and remote control.

    It is forked from a process that has imported the engine.

    Arguments:
        environment: more variables for the process.
        database_url: of its ledger; None: an SQLite of its own.
        run: the function of `worker_process` that it runs.

    Attributes:
        name: of its node.
        client: a stock Celery application on the same broker.
    """

    def __init__(
        self,
        engine: str,
        broker_url: str,
        prefix: str,
        folder: Path,
        *,
        modules: tuple[str, ...] = (),
        environment: dict[str, str] | None = None,
        database_url: str | None = None,
        run: str = "run",
    ) -> None:
        self.engine, self.folder, self.modules, self.environment = engine, folder, modules, environment or {}
        self._run = run
        self.name = f"{engine}@{prefix}-{uuid.uuid4().hex[:4]}"
        self.settings = Settings(
            broker_url=broker_url,
            database_url=database_url or f"sqlite:///{folder}/ledger.db",
            prefix=prefix,
            grace_seconds=20,
        )
        self.database = Database(upgraded(self.settings.database_url))
        self.producer = Producer.from_settings(self.settings)
        self.client = celery.Celery("stock", broker=broker_url, set_as_current=False)
        self.client.conf.event_queue_exclusive = True
        self.log = folder / f"{self.name}.log"

    def start(self) -> Running:
        """Start the process and wait until it runs jobs."""
        with self.log.open("wb") as log:
            self.process = self.launch({**os.environ, **self.variables()}, log)
        assert self.producer.enqueue(Add(a=1)).wait(timeout=WAIT_SECONDS)
        return self

    def variables(self) -> dict[str, str]:
        """Environment variables of the process in addition to ours."""
        return {
            "PENSTOCK_BROKER_URL": self.settings.broker_url,
            "PENSTOCK_DATABASE_URL": self.settings.database_url,
            "PENSTOCK_PREFIX": self.settings.prefix,
            "PENSTOCK_GRACE_SECONDS": str(self.settings.grace_seconds),
            "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE / "apps")]),
            **self.environment,
        }

    def launch(self, environment: dict[str, str], log: Any) -> subprocess.Popen[bytes] | Forked:
        modules = ["engine_jobs", *self.modules]
        arguments = {"engine": self.engine, "name": self.name, "modules": modules}
        return importer(f"penstock.workers.engines.{self.engine}.worker").start(
            f"worker_process:{self._run}", environment=environment, folder=self.folder, log=log, **arguments
        )

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.close()

    def close(self) -> None:
        self.client.close()
        self.producer.close()
        self.database.close()

    def ask(self, command: str, **arguments: Any) -> Any:
        """The worker's answer to a remote control command."""

        def answer() -> list[Any] | None:
            # A connection of its own each time: the client's pooled ones do not outlive a broker.
            with self.client.connection_for_write() as connection:
                try:
                    replies = self.client.control.broadcast(
                        command,
                        arguments,
                        destination=[self.name],
                        connection=connection,
                        reply=True,
                        timeout=5,
                        limit=1,
                    )
                except connection.connection_errors:
                    return None
            return [reply[self.name] for reply in replies or ()] or None

        return until(answer, f"an answer to {command}")[0]

    def tell(self, command: str, **arguments: Any) -> None:
        """Send a remote control command that has no answer.

        A broadcast reaches only workers that listen already, and a worker may run jobs before it does.
        """
        self.ask("ping")
        self.client.control.broadcast(command, arguments, destination=[self.name])

    def active(self) -> list[str]:
        return [request["id"] for request in self.ask("active")]


@contextmanager
def running(engine: str, broker_url: str, prefix: str, folder: Path, **options: Any) -> Iterator[Running]:
    worker = Running(engine, broker_url, prefix, folder, **options)
    try:
        yield worker.start()
    except BaseException:
        print(worker.log.read_text() if worker.log.exists() else "it did not start")
        raise
    finally:
        worker.stop()
