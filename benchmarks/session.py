"""Servers and processes of a run: everything a measurement starts, and stops again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import redis
import sqlalchemy as sa

from benchmarks.entrants import ROOT, Entrant
from benchmarks.ticks import Stamps
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.upgrade import upgrade
from penstock.workers.local.up.redis_server import RedisServer

POSTGRES_URL = os.environ.get("PENSTOCK_BENCH_POSTGRES_URL", "postgresql+psycopg://postgres@127.0.0.1:5432/postgres")
AMQP_URL = os.environ.get("PENSTOCK_BENCH_AMQP_URL", "amqp://guest:guest@127.0.0.1:5672/{vhost}")
STALL_SECONDS = 30.0
"""Without a job done for so long, a run has failed."""


class BenchError(Exception):
    """A contestant did not do what it was asked to; names it and shows the end of its output."""


class Servers:
    """A Redis of our own, a virtual host on RabbitMQ and a database on PostgreSQL, where these are reachable."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.redis = RedisServer(folder / "redis")
        self.amqp_url: str | None = None
        self.missing: list[str] = []
        self._vhost: str | None = None
        self._admin: sa.Engine | None = None
        self._database = f"penstock_bench_{uuid.uuid4().hex[:8]}"

    def start(self, *, rabbitmq: bool, postgres: bool) -> None:
        self.redis.start()
        if rabbitmq:
            self._start_rabbitmq()
        if postgres:
            self._start_postgres()

    def _start_rabbitmq(self) -> None:
        try:
            self._renew_vhost()
        except (OSError, subprocess.SubprocessError) as error:
            self.missing.append(f"RabbitMQ (rabbitmqctl, for a virtual host of our own: {error})")

    def _renew_vhost(self) -> None:
        """Replace the virtual host of this run: a contestant finds no queue of the one before it, and no other virtual
        host is touched."""
        self._delete_vhost()
        name = f"penstock-bench-{uuid.uuid4().hex[:8]}"
        _rabbitmqctl("add_vhost", name)
        self._vhost, self.amqp_url = name, AMQP_URL.format(vhost=name)
        user = urlsplit(self.amqp_url).username or "guest"
        _rabbitmqctl("set_permissions", "-p", name, user, ".*", ".*", ".*")

    def _delete_vhost(self) -> None:
        if self._vhost is not None:
            _rabbitmqctl("delete_vhost", self._vhost)
            self._vhost = None

    def _start_postgres(self) -> None:
        engine = sa.create_engine(POSTGRES_URL, isolation_level="AUTOCOMMIT", poolclass=sa.pool.NullPool)
        try:
            with engine.connect() as connection:
                connection.execute(sa.text(f"CREATE DATABASE {self._database}"))
        except sa.exc.SQLAlchemyError as error:
            self.missing.append(f"PostgreSQL ({str(error).splitlines()[0]})")
            return
        self._admin = engine
        database = Database(self.postgres_url)
        upgrade(database)
        database.close()

    @property
    def has_postgres(self) -> bool:
        return self._admin is not None

    @property
    def postgres_url(self) -> str:
        url = sa.make_url(POSTGRES_URL).set(database=self._database)
        return url.render_as_string(hide_password=False)

    @contextmanager
    def another_database(self) -> Iterator[str]:
        """URL of an empty ledger in a database of its own on PostgreSQL, which must be reachable."""
        assert self._admin is not None
        name = f"penstock_bench_{uuid.uuid4().hex[:8]}"
        with self._admin.connect() as connection:
            connection.execute(sa.text(f"CREATE DATABASE {name}"))
        try:
            yield sa.make_url(POSTGRES_URL).set(database=name).render_as_string(hide_password=False)
        finally:
            with self._admin.connect() as connection:
                connection.execute(sa.text(f"DROP DATABASE {name} WITH (FORCE)"))

    def clear(self, broker: str) -> None:
        """Empty the broker and the PostgreSQL ledger before a run."""
        if broker == "rabbitmq":
            self._renew_vhost()
        with redis.Redis.from_url(self.redis.url) as client:
            client.flushall()
        if self._admin is not None:
            from penstock.ledger.sql.tables import metadata

            engine = sa.create_engine(self.postgres_url, poolclass=sa.pool.NullPool)
            with engine.begin() as connection:
                names = ", ".join(table.name for table in metadata.sorted_tables)
                connection.execute(sa.text(f"TRUNCATE {names}"))

    def stop(self) -> None:
        self.redis.stop()
        self._delete_vhost()
        if self._admin is not None:
            with self._admin.connect() as connection:
                connection.execute(sa.text(f"DROP DATABASE {self._database} WITH (FORCE)"))


def _rabbitmqctl(*arguments: str) -> None:
    command = shutil.which("rabbitmqctl")
    if command is None:
        raise FileNotFoundError("not found")
    subprocess.run([command, "-q", *arguments], check=True, capture_output=True, timeout=120)


class Session:
    """A run of one contestant on one broker, with fresh queues, ledger and stamps."""

    def __init__(self, servers: Servers, entrant: Entrant, *, broker: str, task: str, capacity: int) -> None:
        self.entrant, self.capacity = entrant, capacity
        self.folder = Path(tempfile.mkdtemp(dir=servers.folder))
        self.stamps = Stamps(self.folder)
        self.workers: list[subprocess.Popen[bytes]] = []
        ours = entrant.environment.get("BENCH_TASK") if task == "noop" else None
        self.environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "BENCH_REDIS_URL": servers.redis.url,
            "TARSK_BROKER": servers.redis.url,
            "BENCH_AMQP_URL": servers.amqp_url or "",
            "BENCH_BROKER": broker,
            "BENCH_TICKS": str(self.folder),
            "BENCH_CAPACITY": str(capacity),
        }
        self.environment |= dict(entrant.environment) | {"BENCH_TASK": ours or task}
        if entrant.is_ours:
            self._settings(servers, broker)

    def _settings(self, servers: Servers, broker: str) -> None:
        ledger = f"sqlite:///{self.folder}/ledger.db"
        if url := self.entrant.environment.get("BENCH_LEDGER_URL"):
            ledger = url
        elif self.entrant.environment.get("BENCH_LEDGER") == "PostgreSQL":
            ledger = servers.postgres_url
        else:
            database = Database(ledger)
            upgrade(database)
            database.close()
        self.environment |= {
            "PENSTOCK_BROKER_URL": servers.amqp_url or "" if broker == "rabbitmq" else servers.redis.url,
            "PENSTOCK_DATABASE_URL": ledger,
            "PENSTOCK_STORAGE_URL": f"file:{self.folder}/storage",
            "PENSTOCK_SMTP_URL": f"maildir:{self.folder}/mail",
            "PENSTOCK_PREFIX": f"b{uuid.uuid4().hex[:8]}",
        }

    def send(self, mode: str, count: int) -> dict[str, float]:
        """Send from a process in the contestant's environment; what it measured of itself."""
        command: list[str | Path] = [
            self.entrant.bin / "python",
            "-m",
            "benchmarks.programs.send",
            self.entrant.app,
            mode,
            str(count),
        ]
        done = subprocess.run(
            command, env=self.environment, cwd=self.folder, capture_output=True, text=True, timeout=300
        )
        if done.returncode != 0:
            raise BenchError(f"{self.entrant.name} cannot send: {done.stderr[-800:]}")
        measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return measured

    def start_worker(self) -> None:
        command = [str(self.entrant.bin / self.entrant.worker[0]), *self.entrant.worker[1:]]
        with (self.folder / "worker.log").open("ab") as log:
            self.workers.append(
                subprocess.Popen(
                    command,
                    env=self.environment | {"BENCH_ROLE": "worker"},
                    cwd=self.folder,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )

    def wait_for(self, count: int, *, pause: float = 0.02) -> None:
        """Until so many jobs ran.

        Raises:
            BenchError: they did not, or the worker ended.
        """
        before, deadline = 0, time.monotonic() + STALL_SECONDS
        while (done := self.stamps.count()) < count:
            if done > before:
                before, deadline = done, time.monotonic() + STALL_SECONDS
            if time.monotonic() > deadline or any(worker.poll() is not None for worker in self.workers):
                log = (self.folder / "worker.log").read_text(errors="replace")[-1500:]
                raise BenchError(f"{self.entrant.name} ran {done} of {count} jobs: {log}")
            time.sleep(pause)

    def processes(self) -> list[Path]:
        """The `/proc` folders of all processes of the workers, also those that have sessions of their own."""
        stats = {path: stat for path in Path("/proc").glob("[0-9]*") if (stat := _stat(path))}
        sessions = {str(worker.pid) for worker in self.workers}
        inside = [path for path, stat in stats.items() if stat[3] in sessions]
        parents = {path.name for path in inside}
        return inside + [path for path, stat in stats.items() if stat[1] in parents and path.name not in parents]

    def cpu_seconds(self, *, server: bool = False) -> float:
        """Processor time of all processes of the workers so far, user and system.

        Arguments:
            server: with that of PostgreSQL's processes that serve the ledger.
        """
        paths = self.processes() + (self._ledger_processes() if server else [])
        ticks = sum(int(stat[11]) + int(stat[12]) for path in paths if (stat := _stat(path)))
        return ticks / os.sysconf("SC_CLK_TCK")

    def _ledger_processes(self) -> list[Path]:
        """The `/proc` folders of PostgreSQL's processes that serve the ledger; empty where it is another database."""
        name = sa.make_url(self.environment["PENSTOCK_DATABASE_URL"]).database
        titles = {path.parent: path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline")}
        return [path for path, title in titles.items() if b"postgres: " in title and f" {name} ".encode() in title]

    def memory_mib(self) -> float:
        """Proportional set size of all processes of the workers: shared pages count by their share."""
        total = 0
        for path in self.processes():
            for line in (path / "smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1])
        return total / 1024

    def stop(self) -> None:
        for worker in self.workers:
            worker.terminate()
        for worker in self.workers:
            try:
                worker.wait(10)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
        for path in self.processes():
            os.kill(int(path.name), signal.SIGKILL)  # children that outlived their parent
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def session(
    servers: Servers, entrant: Entrant, *, broker: str = "redis", task: str = "noop", capacity: int = 100_000
) -> Iterator[Session]:
    servers.clear(broker)
    running = Session(servers, entrant, broker=broker, task=task, capacity=capacity)
    try:
        yield running
    finally:
        running.stop()


def _stat(path: Path) -> list[Any] | None:
    """Fields of `/proc/…/stat` after the name: state, ppid, pgrp, session, …, utime (11), stime (12)."""
    try:
        return (path / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
