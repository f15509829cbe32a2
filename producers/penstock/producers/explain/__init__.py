"""Why a job isn't running, or what became of it: one sentence, the facts behind it, and what to do.

Asked by the command line, the gateway and Flower. Nothing is changed by asking. What a job's message holds is not read,
so nothing sensitive can show.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from penstock.ledger.sql.clock import from_now
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import unique_keys
from penstock.producers.explain.case import Case
from penstock.producers.explain.case import Explanation as Explanation
from penstock.producers.explain.ended import dead, ended, letter
from penstock.producers.explain.limited import held_back
from penstock.producers.explain.outboxed import outboxed
from penstock.producers.explain.queue_position import Places
from penstock.producers.explain.queued import queued
from penstock.producers.explain.running import runs
from penstock.producers.explain.unknown import unknown
from penstock.producers.explain.waiting import waits
from penstock.producers.explain.wording import present
from penstock.producers.limits.store import LimitStore
from penstock.schemas.jobs.kind import registry
from penstock.schemas.jobs.unique_policy import UNENDED
from penstock.schemas.states import State

LEASE = timedelta(seconds=15)


def explain(
    database: Database,
    job_id: str,
    places: Places | None = None,
    *,
    lease: timedelta = LEASE,
    queues: Iterable[str] = (),
    limits: LimitStore | None = None,
) -> Explanation:
    """Explain one job.

    Arguments:
        places: to ask the broker with; None: what it would know is left out.
        lease: the setting.
        queues: where to look for a job that the ledger does not know, beside those of living workers.
        limits: says who has the places that it waits for; None: that is left out.

    Raises:
        LedgerUnavailable: the database cannot be reached. A broker that cannot is said in the facts.
    """
    case = Case.read(database, job_id, lease)
    for _ in range(3):
        explanation = _explain(case, places, queues, database, limits)
        before, case = case, Case.read(database, job_id, lease)
        if before.stands_as(case):
            break  # else it moved on while the broker was asked, and what was found there is no longer so
    return explanation


def explain_key(
    database: Database,
    key: str,
    places: Places | None = None,
    *,
    kind: str | None = None,
    tenant: str | None = None,
    lease: timedelta = LEASE,
) -> list[Explanation]:
    """Explain the job that took a unique key last, of each kind and tenant: why another one was not accepted.

    Nobody took it: an empty list. For jobs that merely have the key see `queries.find`.
    """
    select = sa.select(unique_keys).where(unique_keys.c.key == key).order_by(unique_keys.c.job_id)
    known = registry.find(kind or "")
    if kind is not None:
        select = select.where(unique_keys.c.kind == (known.name if known else kind))
    if tenant is not None:
        select = select.where(unique_keys.c.tenant == tenant)

    def read(connection: sa.Connection) -> tuple[datetime, list[Any]]:
        now = connection.execute(sa.select(from_now().label("now"))).scalar_one()
        # MariaDB holds "A" and "a" for equal.
        rows = connection.execute(select).all()
        return now, [row for row in rows if row.key == key and tenant in (None, row.tenant)]

    now, rows = database.read(read)
    return [_of_key(row, explain(database, row.job_id, places, lease=lease), now) for row in rows]


def _explain(
    case: Case, places: Places | None, queues: Iterable[str], database: Database, limits: LimitStore | None
) -> Explanation:
    if case.job is None:
        if case.letter is not None:
            return letter(case)
        return outboxed(case) if case.outbox is not None else unknown(case, places, queues)
    match State(case.job.state):
        case State.SCHEDULED if case.limit is not None:
            explanation = held_back(case, *case.limit, database, limits)
        case State.SCHEDULED | State.RETRYING:
            explanation = waits(case)
        case State.QUEUED:
            explanation = queued(case, places)
        case State.RUNNING:
            explanation = runs(case, places)
        case State.DEAD:
            explanation = dead(case)
        case _:
            explanation = ended(case)
    return replace(explanation, facts=present(case.about() | explanation.facts))


def _of_key(row: Any, holder: Explanation, now: datetime) -> Explanation:
    tenant = "" if row.tenant is None else f" of tenant {row.tenant!r}"
    named = f"key {row.key!r} of {row.kind}{tenant}"
    facts = holder.facts | present({"key": row.key, "kind": row.kind, "tenant": row.tenant})
    if not _holds(row, holder.state, now):
        because, advice = f"{named} is free; it was held by this job: {holder.because}", None
    else:
        facts["holds_key_until"] = row.held_until or "it ends"
        because = f"{named} is held by this job: {holder.because}"
        advice = f"wait for it, cancel it (penstock jobs cancel {row.job_id}), or enqueue with another policy or key"
        if holder.advice is not None:
            advice = f"{holder.advice}; or: {advice}"
    return replace(holder, because=because, facts=facts, advice=advice)


def _holds(row: Any, state: State | None, now: datetime) -> bool:
    """As `producers.unique` decides it, by the policy of the key's kind; that of a single call is not on record."""
    kind = registry.find(row.kind)
    policy = None if kind is None else kind.unique
    lasting = UNENDED if row.held_until is None else UNENDED | {State.SUCCEEDED}
    states = lasting if policy is None else policy.states
    if row.held_until is not None and row.held_until <= now:
        return False
    if state is None:  # not on record any more, so it ended long ago
        return row.held_until is not None and State.SUCCEEDED in states
    if row.held_until is None and policy is not None and policy.hold is not None:
        states = states & UNENDED
    return state in states
