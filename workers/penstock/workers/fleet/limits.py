"""Limits in use: how many jobs run and wait under each, and the numbers that operators set."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from penstock.config.errors import LimitNotFound
from penstock.ledger.members import controls
from penstock.ledger.members.controls import Control
from penstock.ledger.rows.waits import limit_waits
from penstock.ledger.sql.database import Database
from penstock.producers.limits.rules import Rule, share_of
from penstock.producers.limits.store import LimitStore
from penstock.schemas.jobs.limits import SHARES
from penstock.workers.fleet.queues import as_values as control_values

_HASH = re.compile(r"[0-9a-f]{24}")


@dataclass(frozen=True, slots=True)
class LimitView:
    """A limit, or a share of it, such as that of one tenant.

    Attributes:
        rule: `5 at a time by tenant`, as declared; None: no worker has reported it.
        share: a hash of the value by which jobs share it; None: all jobs do.
        change: the number that an operator has set, for the share or for the whole limit; None: as declared.
        running, woken: ids of jobs that hold its slots, and of those on their way to a worker.
        waiting: number of jobs that wait in the ledger.
    """

    limit: str
    rule: str | None
    share: str | None
    change: Control | None
    running: tuple[str, ...]
    woken: tuple[str, ...]
    waiting: int


def view_limits(database: Database, store: LimitStore) -> list[LimitView]:
    """Every limit that workers have reported or operators have set, with a line for each share that is in use or set.

    Raises:
        BrokerUnavailable: the Redis of the limits does not answer. LedgerUnavailable.
    """
    waiting, in_force, rules = limit_waits.counts(database), controls.in_force(database), store.rules()
    slots = (
        store.used_slots() | set(waiting) | {name for name in in_force.limits if _HASH.fullmatch(Rule.of_slot(name)[1])}
    )
    named = {Rule.of_slot(slot)[0] for slot in slots}
    whole = rules.keys() | {name for name in in_force.limits if name not in slots}
    ordered = [*sorted(slots), *(f"{name}:" for name in sorted(whole - named))]
    views = []
    for slot, use in zip(ordered, store.uses(ordered), strict=True):
        name, share = Rule.of_slot(slot)
        rule = rules[name].text if name in rules else None
        change = in_force.limit_of(slot)
        views.append(LimitView(name, rule, share or None, change, use.running, use.woken, waiting.get(slot, 0)))
    return views


def as_values(change: Control | None) -> dict[str, Any] | None:
    """A change of a limit as plain values; `of_share`: it is for this share, not for the whole limit."""
    if change is None:
        return None
    is_of_share = _HASH.fullmatch(Rule.of_slot(change.name)[1]) is not None
    return {**(control_values(change) or {}), "value": change.value, "of_share": is_of_share}


def set_limit(
    database: Database,
    store: LimitStore,
    limit: str,
    most: int,
    *,
    share: str | None = None,
    actor: str,
    reason: str | None = None,
    until: datetime | timedelta | None = None,
) -> Control:
    """Set the number of a limit for all workers, which follow within two seconds.

    Arguments:
        most: jobs at a time, or in the period of a rate; its period and burst stay.
        share: the value, or its hash, of the share that it is for, such as a tenant; None: each.
        until: see `controls.set_limit`.

    Raises:
        LimitNotFound: no worker has reported it, or it has no shares. ConfigError: the number is out of bounds, or
            `until` has passed. BrokerUnavailable, LedgerUnavailable.
    """
    name = _name(store, limit, share)
    return controls.set_limit(database, name, most, actor=actor, reason=reason, until=until)


def reset_limit(
    database: Database, store: LimitStore, limit: str, *, share: str | None = None, actor: str
) -> Control | None:
    """Let a limit, or a share of it, be as declared. Returns what has ended; None: it was not set.

    Raises:
        LimitNotFound: it is not set, and no worker has reported it. BrokerUnavailable, LedgerUnavailable.
    """
    if share is None and limit in controls.in_force(database).limits:  # also one that is not declared any more
        return controls.reset_limit(database, limit, actor=actor)
    return controls.reset_limit(database, _name(store, limit, share), actor=actor)


def _name(store: LimitStore, limit: str, share: str | None) -> str:
    """Name of a limit, or the slot of its share."""
    rules = store.rules()
    if (rule := rules.get(limit)) is None:
        names = ", ".join(sorted(rules)) or "none"
        raise LimitNotFound(f"no worker has reported a limit {limit!r}; reported: {names}")
    if share is None:
        return limit
    if rule.by is None:
        raise LimitNotFound(f"limit {limit} has no shares: all its jobs have it in common")
    return f"{limit}:{share if _HASH.fullmatch(share) else share_of(_value(rule.by, share))}"


def _value(by: str, text: str) -> object:
    """The JSON value of a share that a person wrote: of a field, 7 is a number and "7" a text."""
    if by in SHARES:
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text
