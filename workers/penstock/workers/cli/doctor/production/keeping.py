"""Keeping: where the ledger and objects are, for how long rows are kept, and how large a message may be."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from urllib.parse import urlsplit

from penstock.config.errors import PenstockError
from penstock.config.settings import Settings
from penstock.workers.telemetry.findings import Finding, fail, ok, warn

LARGE_MESSAGE = 16 * 1024 * 1024
"""Bytes; a worker holds a batch of messages, and each takes several times its size once it is parsed."""


def review(settings: Settings) -> Iterator[Finding]:
    yield _size(settings)
    yield from _hosts(settings)
    yield _retention(settings)


def _size(settings: Settings) -> Finding:
    check, limit = "max_message_bytes", settings.message_limit
    if limit > LARGE_MESSAGE:
        advice = "lower it, or max_payload_bytes; large content belongs into the storage, and its key into the job"
        return warn(check, f"{limit:,} bytes: a few forged messages fill a worker's memory", advice)
    return ok(check, f"{limit:,} bytes")


def _hosts(settings: Settings) -> Iterator[Finding]:
    """Ledger and storage that only one machine has, while several work."""
    try:
        hosts = _live_hosts(settings)
    except PenstockError as error:
        yield fail("ledger: hosts", f"not checked: {error}", "let the ledger answer, and check again")
        return
    machines = ", ".join(hosts) or "none at work"
    if urlsplit(settings.database_url).scheme == "sqlite" and len(hosts) > 1:
        advice = "use PostgreSQL or MariaDB"
        yield fail("ledger: hosts", f"SQLite for several machines: {machines}", advice)
    else:
        yield ok("ledger: hosts", f"{machines}; backups are not checked")
    if urlsplit(settings.storage_url).scheme == "file" and len(hosts) > 1:
        yield fail(
            "storage: hosts", f"a folder for several machines: {machines}", "use S3, for results to be read elsewhere"
        )


def _live_hosts(settings: Settings) -> list[str]:
    """Machines of live workers and dispatchers. Raises LedgerUnavailable."""
    from penstock.ledger.members.leases import await_renewal
    from penstock.ledger.members.roster import Roster
    from penstock.workers.cli.common.session import open_ledger

    with open_ledger(settings) as database:
        await_renewal(database, settings.lease)
        roster = database.read(partial(Roster.read, lease=settings.lease))
    return sorted({member.host for member in (*roster.workers, *roster.dispatchers)})


def _retention(settings: Settings) -> Finding:
    kept = settings.retention
    endless = [name for name in ("succeeded", "discarded", "cancelled", "letters") if getattr(kept, name) is None]
    if endless:
        advice = "give [retention] a time for each: they hold what people have sent"
        return warn("retention", f"for ever: {', '.join(endless)}", advice)
    undecided = "until someone decides" if kept.dead is None else f"{kept.dead.days} d"
    return ok("retention", f"succeeded {kept.succeeded.days if kept.succeeded else 0} d, dead {undecided}")
