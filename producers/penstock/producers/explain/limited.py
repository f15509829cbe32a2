"""Jobs that a limit holds back: which jobs hold it, or when the rate admits the next one."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from penstock.config.errors import BrokerUnavailable
from penstock.ledger.members.controls import Control
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import jobs
from penstock.producers.explain.case import COUNTED, NAMED, Case, Explanation
from penstock.producers.explain.pools import START_DISPATCHER, no_dispatcher, pool_trouble
from penstock.producers.explain.wording import short, when
from penstock.producers.limits.rules import Rule
from penstock.producers.limits.store import LimitStore, PublishedRule, SlotUse
from penstock.schemas.states import State


def explain_limited(case: Case, slot: str, before: int, database: Database, store: LimitStore | None) -> Explanation:
    name, share = Rule.of_slot(slot)
    facts: dict[str, Any] = {"limit": name, "share": share, "waits_before_it": before if before <= COUNTED else "many"}
    because = f"held by limit {name}"
    try:
        rule, use = (None, None) if store is None else (store.rules().get(name), store.uses([slot])[0])
        rule = rule.of_share(share) if rule is not None else None
    except BrokerUnavailable as error:
        rule = use = None
        facts["store"] = "cannot be asked" if case.scope.is_bounded else f"cannot be asked: {error}"
        because += ", whose Redis cannot be asked: nothing under it begins until that is back"
    change = case.controls.limit_of(slot)
    if change is not None:
        facts["set_to"], facts["set_by"], facts["set_until"] = change.value, change.actor, change.until
        facts["set_because"] = change.reason
    if rule is not None and use is not None:
        facts["rule"] = rule.text
        by_concurrency = rule.most > 0
        because += (
            f": {_describe_concurrency(case, rule, use, database, facts)}"
            if by_concurrency
            else f": rate, {_describe_rate(case, rule, use, before, facts)}"
        )
    if change is not None:
        because += f"; {_describe_change(case, change, rule)}"
    if before:
        because += f"; {before:,} wait before it" if before <= COUNTED else f"; over {COUNTED:,} wait before it"
    trouble, advice = pool_trouble(case, facts)
    if trouble:
        because += f"; and {trouble}"
    if (gone := no_dispatcher(case)) is not None:
        because, advice = f"{because}; and no dispatcher lives to send it ({gone})", START_DISPATCHER
    return Explanation(case.id, State.SCHEDULED, because, facts, advice)


def _describe_concurrency(
    case: Case, rule: PublishedRule, use: SlotUse, database: Database, facts: dict[str, Any]
) -> str:
    """The jobs that hold the limit; those outside of the caller's bounds are counted and not named."""
    columns = (jobs.c.id, jobs.c.worker, jobs.c.kind, jobs.c.queue, jobs.c.tenant)
    select = sa.select(*columns).where(database.among(jobs.c.id, [*use.running, *use.woken]))
    rows = {row.id: row for row in database.read(lambda connection: connection.execute(select).all())}

    def is_named(job_id: str) -> bool:
        row = rows.get(job_id)
        if row is None:
            return not case.scope.is_bounded
        return case.scope.includes(row.kind, row.queue, row.tenant)

    holders = [job_id for job_id in use.running if is_named(job_id)]
    facts["running"] = {job_id: rows[job_id].worker if job_id in rows else None for job_id in holders[:NAMED]}
    facts["about_to_run"] = [job_id for job_id in use.woken if is_named(job_id)][:NAMED]
    names = ", ".join(f"{job_id} on {worker}" for job_id, worker in facts["running"].items())
    because = f"{len(use.running)} of {rule.most} running" + (f": {names}" if names else "")
    if use.woken:
        because += f"; {len(use.woken)} on their way to a worker"
    is_full = len(use.running) + len(use.woken) >= rule.most
    return because if is_full else f"{because}; a slot is free, and the next is sent"


def _describe_rate(case: Case, rule: PublishedRule, use: SlotUse, before: int, facts: dict[str, Any]) -> str:
    ahead = before + len(use.woken)
    following = min(use.next, rule.interval + rule.tolerance)  # what was set to a faster rate forgets the slower one
    facts["may_run_at"] = case.now + max(following - rule.tolerance + ahead * rule.interval, timedelta())
    reached = "reached" if "set_to" in facts else f"{rule.text} reached"
    return f"{reached}; it may run {when(facts['may_run_at'], case.now)}"


def _describe_change(case: Case, change: Control, rule: PublishedRule | None) -> str:
    declared = f" in place of {rule.text}" if rule is not None else ""
    end = f" until {when(change.until, case.now)}" if change.until is not None else ""
    reason = f": {short(change.reason)}" if change.reason else ""
    return f"it is set to {change.value:,}{declared} by {change.actor}{end}{reason}"
