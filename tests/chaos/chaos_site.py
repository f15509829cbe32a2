"""The site of a chaos round: a broker, workers and dispatchers as an operator starts them; and their effects."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import sqlalchemy as sa
from chaos_jobs import EFFECTS, QUEUE
from support.polling import retry
from support.servers.databases import PostgresServer
from support.servers.killable_redis import KillableRedis
from support.servers.rabbitmq_node import RabbitmqNode

from penstock.config.errors import PenstockError
from penstock.config.settings import Settings
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import dead_letters, jobs, workers
from penstock.ledger.sql.upgrade import upgrade
from penstock.producers import Producer
from penstock.producers.senders.rabbitmq.names import lane_name
from penstock.producers.senders.rabbitmq.publisher import connect
from penstock.schemas.jobs.kind import DISPATCHER_QUEUE, PRIORITIES
from penstock.schemas.states import FINAL
from penstock.workers.local.up.redis_server import free_port

HERE = Path(__file__).parent
FOLDERS = [HERE, *(HERE / name for name in ("environment", "jobs", "outbox", "schedules", "workflows"))]
"""Modules of chaos are found by their bare names, in its processes as well."""
PENSTOCK = Path(sys.executable).parent / "penstock"
LEASE_SECONDS = 2.0


class Postgres(PostgresServer):
    """PostgreSQL that may lose its first process."""

    def start(self) -> None:
        """Start as soon as the sessions of a killed postmaster have gone."""
        retry(super().start, AssertionError, pause=0.2)

    def kill_postmaster(self) -> None:
        pid = int((self.folder / "data" / "postmaster.pid").read_text().splitlines()[0])
        os.kill(pid, signal.SIGKILL)


@contextmanager
def running_postgres() -> Iterator[Postgres]:
    server = Postgres()
    try:
        server.start()
        yield server
    finally:
        server.close()


class Site:
    """Everything of one round.

    Arguments:
        folder: for logs, ledger and traces; its own.
        broker_server: to break, or None: the broker at `broker_url` is not touched.
        postgres: the ledger's server, to break.
        ledger_url: where there is none; None: SQLite in the folder.

    Attributes:
        modules: imported by workers and dispatchers.
        changes: of the environment of workers, by slot.
        dispatcher_ports: for metrics.
    """

    def __init__(
        self,
        engine: str,
        folder: Path,
        prefix: str,
        *,
        broker_url: str,
        broker_server: KillableRedis | RabbitmqNode | None = None,
        postgres: Postgres | None = None,
        ledger_url: str | None = None,
        workers: int = 2,
        dispatchers: int = 2,
    ) -> None:
        self.engine, self.folder = engine, folder
        self.broker_server, self.postgres = broker_server, postgres
        self.trace, self.provider = folder / "trace", folder / "provider"
        self.provider.mkdir()
        ledger_url = postgres.url if postgres is not None else ledger_url
        self.settings = Settings(
            broker_url=broker_url,
            database_url=ledger_url or f"sqlite:///{folder}/ledger.db",
            storage_url=f"file:{folder}/storage",
            smtp_url=f"maildir:{folder}/mail",
            prefix=prefix,
            stock_queues=(),
            lease_seconds=LEASE_SECONDS,
            broker_timeout_seconds=2.0,
            grace_seconds=5,
            max_crashes=10_000,  # jobs that kill their worker are another test's subject
        )
        self.database = Database(self.settings.database_url)
        upgrade(self.database)
        EFFECTS.metadata.create_all(self.database.engine)
        self.producer = Producer.from_settings(self.settings)
        self.workers: list[subprocess.Popen[bytes] | None] = [None] * workers
        self.dispatchers: list[subprocess.Popen[bytes] | None] = [None] * dispatchers
        self.dispatcher_ports = [free_port() for _ in range(dispatchers)]
        self.modules = ["chaos_jobs"]
        self.changes: dict[int, dict[str, str]] = {}
        self._started = 0

    def start(self) -> None:
        for slot in range(len(self.workers)):
            self.start_worker(slot)
        for slot in range(len(self.dispatchers)):
            self.start_dispatcher(slot)

    def start_worker(self, slot: int) -> None:
        self.workers[slot] = self._run(
            ["worker", "--engine", self.engine, "--queues", QUEUE, "--concurrency", "30", *self._imports()],
            self.changes.get(slot, {}),
        )

    def start_dispatcher(self, slot: int) -> None:
        self.dispatchers[slot] = self._run(
            ["dispatcher", *self._imports()], {"PENSTOCK_HTTP_PORT": str(self.dispatcher_ports[slot])}
        )

    def _imports(self) -> list[str]:
        return [word for module in self.modules for word in ("--import", module)]

    def revive(self) -> int:
        """Start again processes that have ended by themselves, as a supervisor would: a worker cannot start without its
        ledger. Returns how many."""
        revived = 0
        for processes, start in ((self.workers, self.start_worker), (self.dispatchers, self.start_dispatcher)):
            for slot, process in enumerate(processes):
                if process is not None and process.poll() is not None:
                    start(slot)
                    revived += 1
        return revived

    def _run(self, command: list[str], changes: Mapping[str, str] = MappingProxyType({})) -> subprocess.Popen[bytes]:
        settings = self.settings
        environment = os.environ | {
            "PENSTOCK_BROKER_URL": settings.broker_url,
            "PENSTOCK_DATABASE_URL": settings.database_url,
            "PENSTOCK_STORAGE_URL": settings.storage_url,
            "PENSTOCK_SMTP_URL": settings.smtp_url,
            "PENSTOCK_PREFIX": settings.prefix,
            "PENSTOCK_STOCK_QUEUES": "[]",
            "PENSTOCK_LEASE_SECONDS": str(settings.lease_seconds),
            "PENSTOCK_BROKER_TIMEOUT_SECONDS": str(settings.broker_timeout_seconds),
            "PENSTOCK_GRACE_SECONDS": str(settings.grace_seconds),
            "PENSTOCK_MAX_CRASHES": str(settings.max_crashes),
            "PYTHONPATH": os.pathsep.join(filter(None, [*map(str, FOLDERS), os.environ.get("PYTHONPATH")])),
            "CHAOS_TRACE": str(self.trace),
            "CHAOS_PROVIDER": str(self.provider),
            **changes,
        }
        self._started += 1
        with (self.folder / f"{self._started:03d}-{command[0]}.log").open("wb") as log:
            return subprocess.Popen(
                [PENSTOCK, *command], env=environment, cwd=self.folder, stdout=log, stderr=log, start_new_session=True
            )

    def stop(self) -> None:
        self.producer.close()
        running = [process for process in (*self.workers, *self.dispatchers) if process is not None]
        for process in running:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.terminate()
        for process in running:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.database.close()

    def wipe(self) -> None:
        """Empty the broker."""
        if isinstance(self.broker_server, KillableRedis):
            from redis import Redis

            with Redis.from_url(self.broker_server.url) as client:
                client.flushall()
            return
        connection = connect(self.settings.broker_url, timeout_seconds=30)
        try:
            channel = connection.channel()
            for queue in (QUEUE, DISPATCHER_QUEUE):
                for priority in PRIORITIES:
                    channel.queue_delete(lane_name(self.settings.prefix, queue, priority))
        finally:
            connection.close()

    # Observations.

    def traces(self) -> dict[int, list[str]]:
        """By number, the ids of the jobs that left a line, each as often as it did."""
        runs: dict[int, list[str]] = defaultdict(list)
        if self.trace.exists():
            for line in self.trace.read_text().splitlines():
                number, job_id, *_ = line.split()
                runs[int(number)].append(job_id)
        return runs

    def effects(self) -> Counter[int]:
        """How many rows each `once` job wrote."""
        select = sa.select(EFFECTS.c.number, sa.func.count().label("rows")).group_by(EFFECTS.c.number)
        return Counter({row.number: row.rows for row in self._read(select)})

    def charges(self) -> dict[int, list[int]]:
        """By number, how often the provider was called with each idempotency key."""
        runs: dict[int, list[int]] = defaultdict(list)
        for account in self.provider.iterdir():
            if calls := account.read_text().split()[::3]:
                runs[int(calls[0])].append(len(calls))
        return runs

    def rows(self) -> dict[str, Any]:
        """The jobs in the ledger: id, kind, state, when it ended, and its error."""
        columns = (jobs.c.id, jobs.c.kind, jobs.c.state, jobs.c.finished_at, jobs.c.error, jobs.c.payload)
        return {row.id: row for row in self._read(sa.select(*columns))}

    def live_workers(self) -> list[str]:
        """Names of the workers that have started."""
        where = workers.c.stopped_at.is_(None) & (workers.c.engine != "dispatcher")
        return [row.name for row in self._read(sa.select(workers.c.name).where(where))]

    def unfinished(self) -> dict[str, str]:
        select = sa.select(jobs.c.id, jobs.c.state).where(jobs.c.state.not_in(sorted(FINAL)))
        return {row.id: row.state for row in self._read(select)}

    def letters(self) -> dict[str, str]:
        """Why each dead letter is one."""
        return {row.id: row.reason for row in self._read(sa.select(dead_letters.c.id, dead_letters.c.reason))}

    def _read(self, select: sa.Select[Any]) -> Any:
        return self.database.read(lambda connection: connection.execute(select).all())

    def wait_for_servers(self) -> None:
        """Wait until broker and ledger answer."""
        checks: list[Callable[[], object]] = [self.producer.ping, self.unfinished]
        for check in checks:
            retry(check, PenstockError, pause=0.1)
