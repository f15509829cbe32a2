"""The plan of `penstock up`: services, folders, ports and settings. Nothing is started here."""

from __future__ import annotations

import http.client
import os
import re
import secrets
import shlex
import socket
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import sqlalchemy as sa

from penstock.config.errors import LedgerUnavailable
from penstock.config.private_files import write_private
from penstock.config.settings import Settings
from penstock.ledger.members import api_keys
from penstock.ledger.sql.clock import from_now
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import workers as workers_table
from penstock.schemas.jobs.kind import registry
from penstock.workers.engines import ENGINES
from penstock.workers.engines.celery.flower.server import BASIC_AUTH
from penstock.workers.engines.celery.flower.server import USER as FLOWER_USER
from penstock.workers.local.up.ports import (
    FLOWER_PORT,
    FLOWER_VARIABLE,
    GATEWAY_PORT,
    GATEWAY_VARIABLE,
    REDIS_VARIABLE,
    is_free,
    port_from_environment,
    require_free,
)
from penstock.workers.local.up.processes import Child, Service
from penstock.workers.local.up.redis_server import free_port, redis_answers, redis_command

BUILTIN_ENGINES = {"emails": "celery", "syncs": "celery", "uploads": "dramatiq", "reports": "dramatiq"}
"""Engines of the built-in workers' queues that `penstock.toml` does not list: one engine waits and the other computes,
as in the `penstock.toml` of this repository."""
URLS = ("broker_url", "database_url", "storage_url", "smtp_url")
ENVIRONMENT_FILE = "penstock.env"
_PENSTOCK = (sys.executable, "-c", "from penstock.workers.cli import main; main()")
"""The command line of this very installation, wherever its console script lies."""
_FLOWER = (
    sys.executable,
    "-c",
    "import sys, pathlib; from penstock.workers.engines.celery.flower.server import run_flower; "
    "sys.exit(run_flower(port=int(sys.argv[1]), folder=pathlib.Path(sys.argv[2]), imports=sys.argv[3:]))",
)

DISPATCHER_SERVICE = "dispatcher"
GATEWAY, WORKERS, DISPATCHER, FLOWER, REDIS = range(5)
"""The stages of stopping, the first one first."""


@dataclass(frozen=True)
class Layout:
    """Folders, ports and settings of the services.

    Attributes:
        folder: of all state, absolute.
        settings: complete; all four URLs are those the services use.
        environment: of every service.
        redis_port: of the Redis to start; None where a broker is configured.
        flower_auth: `user:password`.
        gateway_port: `gateway_key` is the file with the key to it.
        http_ports: of the metrics and the health of the workers and the dispatcher, by the service's name.
    """

    folder: Path
    settings: Settings
    environment: Mapping[str, str]
    redis_port: int | None
    flower_port: int
    flower_auth: str
    gateway_port: int
    http_ports: Mapping[str, int]
    imports: tuple[str, ...] = ()

    @property
    def logs(self) -> Path:
        return self.folder / "log"

    @property
    def flower_url(self) -> str:
        return f"http://127.0.0.1:{self.flower_port}"

    @property
    def gateway_url(self) -> str:
        return f"http://127.0.0.1:{self.gateway_port}"

    @property
    def gateway_key(self) -> Path:
        return self.folder / "gateway.key"

    @property
    def environment_file(self) -> Path:
        return self.folder / ENVIRONMENT_FILE


def plan(
    settings: Settings,
    folder: Path,
    imports: Iterable[str] = (),
    *,
    config: Path | None = None,
    environment: Mapping[str, str] | None = None,
    flower_port: int | None = None,
    gateway_port: int | None = None,
) -> Layout:
    """Fill in what is not configured: a Redis on a free port, and the rest as files in the folder.

    Arguments:
        config: the penstock.toml that the services shall read.
        environment: theirs, before ours is added; None: this process's.
        flower_port: None: as `PENSTOCK_FLOWER_PORT` says, else 5555.
        gateway_port: None: as `PENSTOCK_GATEWAY_PORT` says, else 8480.

    Raises:
        PortInUse: names the port, and what to do.
    """
    folder = folder.resolve()
    configured = settings.model_fields_set
    redis_port = None if "broker_url" in configured else _redis_port(folder)
    defaults = {
        "broker_url": "" if redis_port is None else f"redis://:{_redis_password(folder)}@127.0.0.1:{redis_port}/0",
        "database_url": f"sqlite:///{folder}/penstock.db",
        "storage_url": f"file:{folder}/storage",
        "smtp_url": f"maildir:{folder}/mail",
    }
    if settings.token_secret is None:
        defaults["token_secret"] = _persisted_secret(folder / "token.secret")
    settings = settings.model_copy(update={name: url for name, url in defaults.items() if name not in configured})
    if flower_port is None:
        flower_port = require_free("Flower", port_from_environment(FLOWER_VARIABLE) or FLOWER_PORT, FLOWER_VARIABLE)
    if gateway_port is None:
        gateway_port = require_free(
            "the gateway", port_from_environment(GATEWAY_VARIABLE) or GATEWAY_PORT, GATEWAY_VARIABLE
        )
    base = dict(os.environ if environment is None else environment)
    auth = base.get(BASIC_AUTH) or f"{FLOWER_USER}:{_persisted_secret(folder / 'flower.password')}"
    ours = {f"PENSTOCK_{name.upper()}": str(getattr(settings, name)) for name in (*URLS, "token_secret")}
    if config is not None:
        ours["PENSTOCK_CONFIG"] = str(config.resolve())
    environment = {**base, **ours, BASIC_AUTH: auth}
    names = [*map(worker_service, queues_by_engine(settings)), DISPATCHER_SERVICE]
    http_ports = {name: free_port() for name in names}
    return Layout(
        folder, settings, environment, redis_port, flower_port, auth, gateway_port, http_ports, tuple(imports)
    )


def write_environment(layout: Layout) -> None:
    """Write `penstock.env`, which a shell can source to use these services from another terminal."""
    names = [f"PENSTOCK_{name.upper()}" for name in (*URLS, "token_secret")]
    names += ["PENSTOCK_CONFIG"] if "PENSTOCK_CONFIG" in layout.environment else []
    lines = [f"export {name}={shlex.quote(layout.environment[name])}\n" for name in names]
    write_private(layout.environment_file, "".join(lines))


def engine_of(settings: Settings, queue: str) -> str:
    """The engine of a queue: from the file, else from `BUILTIN_ENGINES`, else Celery."""
    listed = settings.queues.get(queue)
    if listed is not None and "engine" in listed.model_fields_set:
        return listed.engine
    return BUILTIN_ENGINES.get(queue, "celery")


def queues_by_engine(settings: Settings) -> dict[str, list[str]]:
    """The queues of the imported kinds and of the file, for each engine that has any."""
    names = sorted(registry.queues() | set(settings.queues))
    shares = {engine: [name for name in names if engine_of(settings, name) == engine] for engine in ENGINES}
    return {engine: share for engine, share in shares.items() if share}


def worker_service(engine: str) -> str:
    """The name of the service that runs the workers of an engine."""
    return f"worker-{engine}"


def redis_service(layout: Layout, port: int) -> Service:
    """The Redis of a layout. It asks for the password in `redis.password`, which its arguments do not show."""
    folder = layout.folder / "redis"
    config, password = folder / "redis.conf", _redis_password(layout.folder)
    write_private(config, f"requirepass {password}\n")
    command = redis_command(folder, port, config=config)
    return Service(
        "redis", command, REDIS, lambda _child: redis_answers(port, password), layout.environment, umask=0o077
    )


def services(layout: Layout, database: Database) -> list[Service]:
    """The services except Redis."""
    imports = [word for module in layout.imports for word in ("--import", module)]

    def service(name: str, stage: int, ready: Callable[[Child], bool], *words: str) -> Service:
        ports = {"PENSTOCK_HTTP_PORT": str(layout.http_ports[name])} if name in layout.http_ports else {}
        return Service(name, [*_PENSTOCK, *words], stage, ready, {**layout.environment, **ports})

    def consumes(child: Child) -> bool:
        return child.pid is not None and is_registered(database, child.pid)

    def dispatches(child: Child) -> bool:
        return "dispatcher runs" in child.output()  # it is registered nowhere; its log shows that it has started

    def answers(_child: Child) -> bool:
        return http_answers(layout.flower_port)

    def opens(_child: Child) -> bool:
        return http_answers(layout.gateway_port)

    _ensure_key(layout.gateway_key, database)
    workers = [
        service(
            worker_service(engine),
            WORKERS,
            consumes,
            "worker",
            "--engine",
            engine,
            "--queues",
            ",".join(queues),
            *imports,
        )
        for engine, queues in queues_by_engine(layout.settings).items()
    ]
    flower = [*_FLOWER, str(layout.flower_port), str(layout.folder / "flower"), *layout.imports]
    return [
        service("gateway", GATEWAY, opens, "gateway", "--port", str(layout.gateway_port), *imports),
        *workers,
        service(DISPATCHER_SERVICE, DISPATCHER, dispatches, "dispatcher", *imports),
        Service("flower", flower, FLOWER, answers, layout.environment),
    ]


def is_registered(database: Database, pid: int) -> bool:
    """Whether the ledger lists a live worker with this pid, or one that is a child of the service with this pid."""
    entered = sa.select(workers_table.c.pid).where(
        workers_table.c.host == socket.gethostname(),
        workers_table.c.stopped_at.is_(None),
        workers_table.c.lease_until > from_now(),
    )
    try:
        pids = database.read(lambda connection: list(connection.scalars(entered)))
    except LedgerUnavailable:
        return False  # busy for a moment; the next check decides
    return any(worker == pid or _group(worker) == pid for worker in pids)


def _group(pid: int) -> int | None:
    """The process group of a process; a service leads its own."""
    try:
        return os.getpgid(pid)
    except OSError:
        return None


def http_answers(port: int) -> bool:
    """Whether an HTTP server answers on 127.0.0.1, even if only to ask for a password."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status < 500
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _redis_port(folder: Path) -> int:
    configured = port_from_environment(REDIS_VARIABLE)
    if configured is not None:
        return require_free("Redis", configured, REDIS_VARIABLE)
    # Reuse the last port if it is free: terminals that sourced penstock.env keep working.
    try:
        text = (folder / ENVIRONMENT_FILE).read_text("utf-8")
    except OSError:
        text = ""
    if match := re.search(r"PENSTOCK_BROKER_URL='?(redis://[^'\s/]*127\.0\.0\.1:\d+)/0", text):
        port = urlsplit(match.group(1)).port
        if port and is_free(port):
            return port
    return free_port()


def _redis_password(folder: Path) -> str:
    return _persisted_secret(folder / "redis.password")


def _persisted_secret(path: Path) -> str:
    """The stored secret, or a new one."""
    if kept := _read_persisted(path):
        return kept
    secret = secrets.token_urlsafe(12)
    write_private(path, f"{secret}\n")
    return secret


def _ensure_key(path: Path, database: Database) -> None:
    """Ensure that the file contains a valid API key for all kinds."""
    key = api_keys.find(database, _read_persisted(path))
    if key is None or not key.holds(datetime.now(UTC)):
        text, _made = api_keys.add(database, "penstock up", kinds=["*"], actor="penstock up")
        write_private(path, f"{text}\n")


def _read_persisted(path: Path) -> str:
    try:
        return path.read_text("utf-8").strip()
    except OSError:
        return ""
