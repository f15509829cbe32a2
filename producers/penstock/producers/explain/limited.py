"""Jobs that a limit holds back: who has the places, or when the rate lets the next one in."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from penstock.config.errors import BrokerUnavailable
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import jobs
from penstock.producers.explain.case import COUNTED, Case, Explanation
from penstock.producers.explain.pools import NAMED, START_DISPATCHER, no_dispatcher, pool_trouble
from penstock.producers.explain.wording import when
from penstock.producers.limits.rules import Rule
from penstock.producers.limits.store import LimitStore, Told, Use
from penstock.schemas.states import State


def held_back(case: Case, slot: str, before: int, database: Database, store: LimitStore | None) -> Explanation:
    name, share = Rule.of_slot(slot)
    facts: dict[str, Any] = {"limit": name, "share": share, "waits_before_it": before if before <= COUNTED else "many"}
    because = f"held by limit {name}"
    try:
        told, use = (None, None) if store is None else (store.rules().get(name), store.look([slot])[0])
    except BrokerUnavailable as error:
        told = use = None
        facts["store"] = f"cannot be asked: {error}"
        because += ", whose Redis cannot be asked: nothing under it begins until that is back"
    if told is not None and use is not None:
        facts["rule"] = told.text
        because += (
            f": {_of_concurrency(told, use, database, facts)}"
            if told.most
            else (f": rate, {_of_rate(case, told, use, before, facts)}")
        )
    if before:
        because += f"; {before:,} wait before it" if before <= COUNTED else f"; over {COUNTED:,} wait before it"
    trouble, advice = pool_trouble(case, facts)
    if trouble:
        because += f"; and {trouble}"
    if (gone := no_dispatcher(case)) is not None:
        because, advice = f"{because}; and no dispatcher lives to send it ({gone})", START_DISPATCHER
    return Explanation(case.id, State.SCHEDULED, because, facts, advice)


def _of_concurrency(told: Told, use: Use, database: Database, facts: dict[str, Any]) -> str:
    select = sa.select(jobs.c.id, jobs.c.worker).where(database.among(jobs.c.id, list(use.running)))
    workers = database.read(lambda connection: {row.id: row.worker for row in connection.execute(select)})
    facts["running"] = {job_id: workers.get(job_id) for job_id in use.running[:NAMED]}
    facts["about_to_run"] = list(use.woken[:NAMED])
    named = ", ".join(f"{job_id} on {worker}" for job_id, worker in facts["running"].items())
    said = f"{len(use.running)} of {told.most} running" + (f": {named}" if named else "")
    if use.woken:
        said += f"; {len(use.woken)} on their way to a worker"
    return said if len(use.running) + len(use.woken) >= told.most else f"{said}; a place is free, and the next is sent"


def _of_rate(case: Case, told: Told, use: Use, before: int, facts: dict[str, Any]) -> str:
    ahead = before + len(use.woken)
    facts["may_run_at"] = case.now + max(use.next - told.tolerance + ahead * told.interval, timedelta())
    return f"{told.text} reached; it may run {when(facts['may_run_at'], case.now)}"
