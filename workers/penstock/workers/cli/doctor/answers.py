"""Checks that everything answers that a worker needs: each returns a line of detail or findings, or raises."""

from __future__ import annotations

import io
from typing import Any

from penstock.config.errors import LedgerUnavailable
from penstock.workers.cli.common.session import open_ledger
from penstock.workers.handlers.discovery import discover
from penstock.workers.telemetry.findings import Finding

_PROBE = "penstock-doctor"


def check_handlers(imports: list[str], settings: Any) -> str:
    from penstock.schemas.jobs.kind import registry
    from penstock.workers.engines.boot_checks import check_settings
    from penstock.workers.handlers.registry import handlers

    discover(imports)
    handlers.check()
    if settings is not None:
        check_settings(handlers, settings, registry.queues())
    return f"{len(list(handlers))} kinds: {', '.join(handler.kind.name for handler in handlers)}"


def check_schedules(settings: Any) -> str:
    from penstock.config.errors import ConfigError
    from penstock.workers.dispatcher.schedules.declarations import read_schedules

    schedules = read_schedules(settings)
    if wrong := [rule.error for rule in schedules if rule.error is not None]:
        raise ConfigError("; ".join(wrong))
    return f"{len(schedules)} in penstock.toml and the code"


def check_broker(settings: Any) -> str:
    from penstock.config.settings import redact_url
    from penstock.producers.senders import open_sender_from

    sender = open_sender_from(settings)
    try:
        sender.ping()
    finally:
        sender.close()
    return redact_url(settings.broker_url)


def check_ledger(settings: Any) -> str:
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


def check_operation(settings: Any) -> list[Finding]:
    """Findings about what runs."""
    from penstock.workers.telemetry.operation import review_operation

    with open_ledger(settings) as database:
        return list(review_operation(settings, database))


def check_storage(settings: Any) -> str:
    from penstock.config.settings import redact_url
    from penstock.producers.storage import make_storage

    storage = make_storage(settings.storage_url)
    try:
        storage.write(_PROBE, io.BytesIO(b"ok"))
        storage.delete(_PROBE)
    finally:
        storage.close()
    return redact_url(settings.storage_url)


def check_mail(settings: Any) -> str:
    from penstock.workers.builtin.emails.transport import make_mailer

    mailer = make_mailer(settings.smtp_url, connections=1)
    try:
        return mailer.check()
    finally:
        mailer.close()
