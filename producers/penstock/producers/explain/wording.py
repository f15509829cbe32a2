"""Times, errors and members of the roster as parts of a sentence."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from penstock.config.printable import length as length
from penstock.ledger.members.roster import Member

_LONGEST = 300


def when(time: datetime | None, now: datetime) -> str:
    """`2026-03-01 09:00:00Z (in 59 min)`."""
    if time is None:
        return "at an unknown time"
    away = time - now
    span = length(abs(away))
    return f"{time:%Y-%m-%d %H:%M:%SZ} ({f'in {span}' if away > timedelta() else f'{span} ago'})"


def seen(member: Member | None, now: datetime, lease: timedelta) -> str:
    """When the last dispatcher, or worker, was seen."""
    if member is None:
        return "none was ever seen"
    if member.stopped_at is not None:
        return f"the last one, {member.name}, stopped {when(member.stopped_at, now)}"
    how = f", ended with {member.ended}" if member.ended else ""
    return f"the last one, {member.name}, was last seen {when(member.lease_until - lease, now)}{how}"


def short(text: str | None) -> str:
    """The text as a line of bounded length."""
    line = " ".join((text or "no reason given").split())
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 1]}…"


def present(facts: dict[str, Any]) -> dict[str, Any]:
    """The facts that have a value."""
    return {name: value for name, value in facts.items() if value not in (None, {}, [])}
