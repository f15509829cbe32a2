"""`penstock doctor`: checks of everything that a worker needs."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import typer

from penstock.config.errors import LedgerUnavailable, PenstockError
from penstock.workers.cli.common.errors import FAILED
from penstock.workers.cli.common.options import AsJson, Imports
from penstock.workers.cli.common.output import echo, print_json
from penstock.workers.cli.common.session import open_ledger, open_settings
from penstock.workers.handlers.discovery import discover

_PROBE = "penstock-doctor"


def add_to(app: typer.Typer) -> None:
    app.command()(doctor)


def doctor(imports: Imports = None, as_json: AsJson = False) -> None:
    """Check configuration, handlers, schedules, broker, ledger and storage. The exit code is 1 if a check fails."""
    checks: list[dict[str, Any]] = []
    settings: Any = None

    def check(name: str, look: Callable[[], str]) -> None:
        try:
            detail, good = look(), True
        except PenstockError as error:
            detail, good = str(error), False
        except Exception as error:  # the other checks still run
            detail, good = f"{type(error).__name__}: {error}", False
        checks.append({"check": name, "ok": good, "detail": detail})

    def config() -> str:
        nonlocal settings
        from penstock.config.toml import find_config

        settings = open_settings()
        return str(find_config() or "no penstock.toml; using defaults and the environment")

    check("config", config)
    check("handlers", lambda: _handlers(imports or [], settings))
    if settings is not None:
        check("schedules", lambda: _schedules(settings))
        check("broker", lambda: _broker(settings))
        check("ledger", lambda: _ledger(settings))
        check("storage", lambda: _storage(settings))
    if as_json:
        print_json(checks)
    else:
        for result in checks:
            echo(f"{'ok   ' if result['ok'] else 'WRONG'}  {result['check']:<9}  {result['detail']}")
    if not all(result["ok"] for result in checks):
        raise typer.Exit(FAILED)


def _handlers(imports: list[str], settings: Any) -> str:
    from penstock.schemas.jobs.kind import registry
    from penstock.workers.engines.boot_checks import check_settings
    from penstock.workers.handlers.registry import handlers

    discover(imports)
    handlers.check()
    if settings is not None:
        check_settings(handlers, settings, registry.queues())
    return f"{len(list(handlers))} kinds: {', '.join(handler.kind.name for handler in handlers)}"


def _schedules(settings: Any) -> str:
    from penstock.config.errors import ConfigError
    from penstock.workers.dispatcher.schedules.declarations import read_schedules

    schedules = read_schedules(settings)
    if wrong := [rule.error for rule in schedules if rule.error is not None]:
        raise ConfigError("; ".join(wrong))
    return f"{len(schedules)} in penstock.toml and the code"


def _broker(settings: Any) -> str:
    from penstock.config.settings import redact_url
    from penstock.producers.senders import open_sender_from

    sender = open_sender_from(settings)
    try:
        sender.ping()
    finally:
        sender.close()
    return redact_url(settings.broker_url)


def _ledger(settings: Any) -> str:
    from penstock.config.settings import redact_url
    from penstock.ledger.sql import upgrade

    where = redact_url(settings.database_url)
    with open_ledger(settings) as database:
        current, head = upgrade.current(database), upgrade.head()
    if not upgrade.is_known(current):
        raise LedgerUnavailable(f"{where} is at revision {current}, of a newer version; this one knows up to {head}")
    if current != head:
        raise LedgerUnavailable(f"{where} is at revision {current}, not {head}; run: penstock db upgrade")
    return f"{where}, revision {current}"


def _storage(settings: Any) -> str:
    from penstock.config.settings import redact_url
    from penstock.producers.storage import make_storage

    storage = make_storage(settings.storage_url)
    try:
        storage.write(_PROBE, io.BytesIO(b"ok"))
        storage.delete(_PROBE)
    finally:
        storage.close()
    return redact_url(settings.storage_url)
