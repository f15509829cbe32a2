"""Faults of the environment: each is a context manager, in which it lasts."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from chaos_site import Site
from own_ledgers import Ledger, can_mount, full
from pairs import has_postgres
from redis import Redis
from support.servers.killable_redis import KillableRedis
from support.servers.rabbitmq_node import RabbitmqNode
from support.stack import faketime_library

CLOCK_BACK_SECONDS = 600
FEW_DESCRIPTORS = 3
"""Input, output and errors. A higher limit would leave the numbers of cut connections free to be used again."""
_LEDGER_IS_GONE = "jobs are held until it is back"

Begin = Callable[[Site, Ledger], AbstractContextManager[None]]


@dataclass(frozen=True)
class Fault:
    """A fault.

    Attributes:
        name: on the command line.
        begin: makes it, and ends it.
        ledger: that it needs; see `open_ledger`.
        broker: the one that it is about; None: all.
        log: a part of a line that some process must log; empty: nothing fails, so nothing is logged.
        counter: of the `faults` of a worker or dispatcher, which must grow; empty: nothing fails.
        silences_worker: one worker alone cannot reach the ledger, and counts as dead when its lease is long over.
        prepare: acts on a site that was not started.
        broker_on_disk: the broker's files are on a small disk of their own.
        missing: what it needs and this machine does not have; empty: nothing.
    """

    name: str
    begin: Begin
    ledger: str = "postgres"
    broker: str | None = None
    log: str = _LEDGER_IS_GONE
    counter: str = "ledger unavailable"
    prepare: Callable[[Site], None] = lambda site: None
    broker_on_disk: bool = False
    silences_worker: bool = False
    missing: Callable[[], str] = lambda: ""

    def concerns(self, pair: str) -> bool:
        return self.broker is None or pair.endswith(f"-{self.broker}")


@contextmanager
def repeated(act: Callable[[], None], seconds: float) -> Iterator[None]:
    """Act now, and again whenever so many seconds have passed."""
    stopping = threading.Event()
    errors: list[BaseException] = []

    def run() -> None:
        try:
            act()
            while not stopping.wait(seconds):
                act()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="fault", daemon=True)
    thread.start()
    yield
    stopping.set()
    thread.join()
    if errors:
        raise errors[0]


# The database.

_CUT = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app'"


@contextmanager
def _role_with(ledger: Ledger, setting: str) -> Iterator[None]:
    """A setting that every connection has from now on. It is taken back for new connections only."""
    ledger.run(f"ALTER ROLE app SET {setting}", _CUT)
    yield
    ledger.run(f"ALTER ROLE app RESET {setting.split()[0]}")


def postgres_read_only(site: Site, ledger: Ledger) -> AbstractContextManager[None]:
    return _role_with(ledger, "default_transaction_read_only = on")


def postgres_statement_timeout(site: Site, ledger: Ledger) -> AbstractContextManager[None]:
    """Shorter than any statement that writes takes."""
    return _role_with(ledger, "statement_timeout = '1ms'")


@contextmanager
def postgres_connection_limit(site: Site, ledger: Ledger) -> Iterator[None]:
    """A single connection for all processes together."""
    ledger.run("ALTER ROLE app CONNECTION LIMIT 1", _CUT)
    yield
    ledger.run("ALTER ROLE app CONNECTION LIMIT -1")


@contextmanager
def mariadb_read_only(site: Site, ledger: Ledger) -> Iterator[None]:
    ledger.run("SET GLOBAL read_only = 1")
    yield
    ledger.run("SET GLOBAL read_only = 0")


def disk_full(site: Site, ledger: Ledger) -> AbstractContextManager[None]:
    """The data's disk. PostgreSQL's log is on another one: without room for that its server ends."""
    assert ledger.disk is not None
    return full(ledger.disk)


def pgbouncer_restarts(site: Site, ledger: Ledger) -> AbstractContextManager[None]:
    """Killed every four seconds, and back a second later."""
    pooler = ledger.pooler
    assert pooler is not None

    def restart() -> None:
        pooler.stop()
        time.sleep(1.0)
        pooler.start()

    return repeated(restart, 3.0)


# The broker.


@contextmanager
def redis_full(site: Site, ledger: Ledger) -> Iterator[None]:
    with _redis(site) as client:
        client.config_set("maxmemory", 1)
        yield
        client.config_set("maxmemory", 0)


@contextmanager
def redis_stalled(site: Site, ledger: Ledger) -> Iterator[None]:
    process = _redis_server(site).process
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    yield
    process.send_signal(signal.SIGCONT)


@contextmanager
def redis_aof_error(site: Site, ledger: Ledger) -> Iterator[None]:
    """MISCONF: the append-only file cannot be written. With `always` it would end."""
    with _redis(site) as client:
        client.config_set("appendfsync", "everysec")
    with full(_redis_server(site).folder):
        yield


def redis_clients_killed(site: Site, ledger: Ledger) -> AbstractContextManager[None]:
    return repeated(lambda: _cut_broker(site), 2.0)


@contextmanager
def rabbitmq_memory_alarm(site: Site, ledger: Ledger) -> Iterator[None]:
    node = site.broker_server
    assert isinstance(node, RabbitmqNode)
    node.set_alarm()
    yield
    node.clear_alarms()


def _redis_server(site: Site) -> KillableRedis:
    assert isinstance(site.broker_server, KillableRedis)
    return site.broker_server


@contextmanager
def _redis(site: Site) -> Iterator[Redis]:
    with Redis.from_url(_redis_server(site).url) as client:
        yield client


def _cut_broker(site: Site) -> None:
    """Cut every connection to the broker."""
    if isinstance(site.broker_server, RabbitmqNode):
        site.broker_server.close_connections()
        return
    with _redis(site) as client:
        client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


# One worker's process.


@contextmanager
def no_descriptors(site: Site, ledger: Ledger) -> Iterator[None]:
    """The first worker can open no file and no connection, and loses those that it has to broker and ledger."""
    process = site.workers[0]
    assert process is not None
    before = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (FEW_DESCRIPTORS, before[1]))
    _cut_broker(site)
    ledger.run(_CUT)
    yield
    with suppress(ProcessLookupError):  # Celery ends a worker that cannot open its connection for this reason
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, before)


def with_own_clock(site: Site) -> None:
    """The first worker's clock shows what a file says; only its monotonic clock is the system's."""
    library = faketime_library()
    assert library is not None
    _set_clock(site, 0)
    site.changes[0] = {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(_clock(site)),
        "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }


@contextmanager
def clock_back(site: Site, ledger: Ledger) -> Iterator[None]:
    _set_clock(site, -CLOCK_BACK_SECONDS)
    yield
    _set_clock(site, 0)


def _clock(site: Site) -> Path:
    return site.folder / "clock"


def _set_clock(site: Site, seconds: int) -> None:
    new = site.folder / "clock.new"
    new.write_text(f"{seconds:+d}s\n")
    os.replace(new, _clock(site))


# All of them.


def _no_disk() -> str:
    return "" if can_mount() else "mounting a small disk takes root"


def _no_pgbouncer() -> str:
    installed = shutil.which("pgbouncer", path=os.environ["PATH"] + ":/usr/sbin")
    return "" if installed else "PgBouncer is not installed"


def _no_mariadb() -> str:
    installed = shutil.which("mariadbd") and shutil.which("mariadb-install-db")
    return "" if installed else "MariaDB is not installed"


def _no_faketime() -> str:
    return "" if faketime_library() else "libfaketime is not installed"


_FAULTS = [
    Fault("postgres-read-only", postgres_read_only),
    Fault("postgres-disk-full", disk_full, ledger="postgres on a disk", missing=_no_disk),
    Fault("postgres-statement-timeout", postgres_statement_timeout),
    Fault("postgres-connection-limit", postgres_connection_limit),
    Fault("pgbouncer-restarts", pgbouncer_restarts, ledger="pgbouncer", missing=_no_pgbouncer),
    Fault("mariadb-read-only", mariadb_read_only, ledger="mariadb", missing=_no_mariadb),
    Fault("sqlite-disk-full", disk_full, ledger="sqlite on a disk", missing=_no_disk),
    Fault("redis-full", redis_full, broker="redis", log="maxmemory", counter="broker refuses writes"),
    Fault("redis-stalled", redis_stalled, broker="redis", log="trying again until", counter="broker unavailable"),
    Fault(
        "redis-aof-error",
        redis_aof_error,
        broker="redis",
        log="MISCONF",
        counter="broker unavailable",
        broker_on_disk=True,
        missing=_no_disk,
    ),
    Fault(
        "redis-clients-killed", redis_clients_killed, broker="redis", log="trying again", counter="broker unavailable"
    ),
    Fault(
        "rabbitmq-memory-alarm",
        rabbitmq_memory_alarm,
        broker="rabbitmq",
        log="blocks publishers",
        counter="broker refuses writes",
    ),
    Fault(
        "clock-back",
        clock_back,
        log="went back by",
        counter="clock changed",
        prepare=with_own_clock,
        missing=_no_faketime,
    ),
    Fault("no-descriptors", no_descriptors, log="Too many open files", silences_worker=True),
]
FAULTS = {fault.name: fault for fault in _FAULTS}
"""By name. `handlers` is none of them: the load mixes them in."""


def missing(fault: Fault) -> str:
    """Requirement of the fault that this machine lacks; empty: none."""
    if fault.ledger in ("postgres", "postgres on a disk", "pgbouncer") and not has_postgres():
        return "PostgreSQL is not installed"
    return fault.missing()
