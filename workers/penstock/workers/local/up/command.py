"""`penstock up`."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from penstock.config.private_files import tighten_all
from penstock.config.settings import load_settings, redact_url
from penstock.config.toml import find_config
from penstock.workers.handlers.discovery import discover, warn_idle
from penstock.workers.local.up.layout import DISPATCHER_SERVICE, Layout, plan, queues_by_engine, worker_service
from penstock.workers.local.up.lock import folder_lock
from penstock.workers.local.up.run import running_services
from penstock.workers.local.up.signals import stopping_on_signals

DEFAULT_FOLDER = Path("var")


def run_up(folder: str | Path | None = None, imports: Sequence[str] = ()) -> int:
    """Run everything on this machine until Ctrl-C, SIGTERM or SIGHUP. Returns the exit code.

    Arguments:
        folder: for all data; None: `./var`.
        imports: the user's modules with handlers.

    Raises:
        FolderInUse: another one runs there. PortInUse. ConfigError, BrokerUnavailable, LedgerUnavailable,
        PenstockError: see `running`.
    """
    console = Console(highlight=False, soft_wrap=True)

    def say(line: str) -> None:
        console.print(f"{time.strftime('%H:%M:%S')} {line}", markup=False)

    home = Path(folder) if folder is not None else DEFAULT_FOLDER
    with folder_lock(home) as lock, stopping_on_signals() as stopping:
        if count := tighten_all(home):
            say(f"{count} files and folders in {home} were open to others; now they are for their owner alone")
        for module in discover(imports):
            say(warn_idle(module))
        layout = plan(load_settings(), home, imports, config=find_config())
        with running_services(layout, lock=lock, stopping=stopping, say=say) as (supervisor, _database):
            if not stopping.is_set():
                hint = f"In another terminal: source {_short(layout.environment_file)}; penstock enqueue … then works."
                for line in ("", *overview(layout), "", hint, "Ctrl-C stops everything.", ""):
                    console.print(line, markup=False)
            supervisor.watch(stopping)
            say("stopping: workers finish their running jobs; Ctrl-C again kills them")
    say("everything has stopped")
    return 0


def overview(layout: Layout) -> list[str]:
    """Services and their addresses, as lines."""
    settings = layout.settings
    user, _, password = layout.flower_auth.partition(":")
    workers = queues_by_engine(settings).items()

    def health(service: str) -> str:
        return f"http://127.0.0.1:{layout.http_ports[service]}/metrics, /live, /ready"

    rows = [
        ("Flower", f"{layout.flower_url}  user {user}, password {password}"),
        ("gateway", f"{layout.gateway_url}  Authorization: Bearer, with the key in {_short(layout.gateway_key)}"),
        *(
            (f"worker {engine}", f"queues {', '.join(queues)}  {health(worker_service(engine))}")
            for engine, queues in workers
        ),
        ("dispatcher", health(DISPATCHER_SERVICE)),
        ("broker", f"{redact_url(settings.broker_url)}{_with_password(layout)}"),
        ("ledger", redact_url(settings.database_url)),
        ("storage", redact_url(settings.storage_url)),
        ("mail", redact_url(settings.smtp_url)),
        ("logs", f"{_short(layout.logs)}/*.log"),
    ]
    return [f"    {name:<16}{where}" for name, where in rows]


def _with_password(layout: Layout) -> str:
    return "" if layout.redis_port is None else f"  with the password in {_short(layout.environment_file)}"


def _short(path: Path) -> str:
    """Relative to the working directory where it lies below it."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
