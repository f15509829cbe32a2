"""Why a job isn't running, or what became of it: one sentence, the facts behind it, and what to do.

Used by the command line and the gateway. Explaining changes nothing. A job's payload is not read, so nothing sensitive
can show.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from penstock.config.errors import JobNotFound
from penstock.ledger.members.leases import await_renewal
from penstock.ledger.queries.scope import EVERYTHING, Scope
from penstock.ledger.sql.clock import from_now
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import unique_keys
from penstock.producers.explain.case import Case, Explanation
from penstock.producers.explain.ended import explain_dead, explain_dead_letter, explain_ended
from penstock.producers.explain.held import explain_held, explain_held_by_pause, is_held_by_pause, with_pause
from penstock.producers.explain.limited import explain_limited
from penstock.producers.explain.outboxed import explain_outboxed
from penstock.producers.explain.queue_position import QueuePositions, open_positions
from penstock.producers.explain.queued import explain_queued
from penstock.producers.explain.running import explain_running
from penstock.producers.explain.unknown import explain_unknown
from penstock.producers.explain.waiting import explain_waiting, explain_workflow
from penstock.producers.explain.wording import present
from penstock.producers.limits.store import LimitStore
from penstock.schemas.jobs.kind import registry
from penstock.schemas.jobs.unique_policy import UNENDED
from penstock.schemas.states import State

__all__ = ["LEASE", "Explanation", "QueuePositions", "explain", "explain_key", "open_positions"]

LEASE = timedelta(seconds=15)


def explain(
    database: Database,
    job_id: str,
    positions: QueuePositions | None = None,
    *,
    lease: timedelta = LEASE,
    queues: Iterable[str] = (),
    limits: LimitStore | None = None,
    scope: Scope = EVERYTHING,
    sent_by_caller: bool = False,
) -> Explanation:
    """Explain one job.

    Arguments:
        positions: asks the broker; None: what the broker knows is left out.
        lease: the setting.
        queues: where to look for a job that the ledger does not know, in addition to those of live workers.
        limits: knows which jobs hold the limit that it waits for; None: that is left out.
        scope: the bounds of the caller. In a bounded one no job, queue or host that lies outside of it is named.
        sent_by_caller: the job is the caller's, also where the ledger has no record of it.

    Raises:
        JobNotFound: the job is outside of the scope.
        LedgerUnavailable: the database cannot be reached. A broker that cannot be reached is a fact.
    """
    await_renewal(database, lease)
    case = Case.read(database, job_id, lease, scope)
    for _ in range(3):
        within = case.is_within_scope
        if within is False or (within is None and scope.is_bounded and not sent_by_caller):
            raise JobNotFound(f"no job has the id {job_id}")
        explanation = _explain(case, positions, queues, database, limits)
        before, case = case, Case.read(database, job_id, lease, scope)
        if before.is_same(case):
            break  # else the job moved on while the broker was asked, whose answer is outdated
    return explanation


def explain_key(
    database: Database,
    key: str,
    positions: QueuePositions | None = None,
    *,
    kind: str | None = None,
    tenant: str | None = None,
    lease: timedelta = LEASE,
) -> list[Explanation]:
    """Explain which job holds a unique key, of each kind and tenant: why another one was not accepted.

    The list is empty if no job took the key. For jobs that merely have the key see `ledger.queries.jobs.find`.
    """
    select = sa.select(unique_keys).where(unique_keys.c.key == key).order_by(unique_keys.c.job_id)
    defined = registry.find(kind or "")
    if kind is not None:
        select = select.where(unique_keys.c.kind == (defined.name if defined else kind))
    if tenant is not None:
        select = select.where(unique_keys.c.tenant == tenant)

    def find_holders(connection: sa.Connection) -> tuple[datetime, list[Any]]:
        now = connection.execute(sa.select(from_now().label("now"))).scalar_one()
        # MariaDB's default collation is case-insensitive.
        rows = connection.execute(select).all()
        return now, [row for row in rows if row.key == key and tenant in (None, row.tenant)]

    now, rows = database.read(find_holders)
    return [_explain_holder(row, explain(database, row.job_id, positions, lease=lease), now) for row in rows]


def _explain(
    case: Case, positions: QueuePositions | None, queues: Iterable[str], database: Database, limits: LimitStore | None
) -> Explanation:
    if case.job is None:
        if case.dead_letter is not None:
            return explain_dead_letter(case)
        if case.outbox is not None:
            return explain_outboxed(case)
        return with_pause(case, explain_unknown(case, positions, queues))
    match State(case.job.state):
        case State.SCHEDULED if case.workflow is not None:
            explanation = explain_workflow(case)
        case State.SCHEDULED if case.limit is not None and is_held_by_pause(case):
            explanation = explain_held_by_pause(case, case.limit[1])
        case State.SCHEDULED if case.limit is not None:
            explanation = explain_limited(case, *case.limit, database, limits)
        case State.SCHEDULED | State.RETRYING if case.held is not None:
            explanation = explain_held(case)
        case State.SCHEDULED | State.RETRYING:
            explanation = explain_waiting(case)
        case State.QUEUED:
            explanation = explain_queued(case, positions)
        case State.RUNNING:
            explanation = explain_running(case, positions)
        case State.DEAD:
            explanation = explain_dead(case)
        case _:
            explanation = explain_ended(case)
    if case.workflow is None:
        explanation = with_pause(case, explanation)
    return replace(explanation, facts=present(case.about() | explanation.facts))


def _explain_holder(row: Any, holder: Explanation, now: datetime) -> Explanation:
    tenant = "" if row.tenant is None else f" of tenant {row.tenant!r}"
    key = f"key {row.key!r} of {row.kind}{tenant}"
    facts = holder.facts | present({"key": row.key, "kind": row.kind, "tenant": row.tenant})
    if not _holds(row, holder.state, now):
        because, advice = f"{key} is free; it was held by this job: {holder.because}", None
    else:
        facts["holds_key_until"] = row.held_until or "it ends"
        because = f"{key} is held by this job: {holder.because}"
        advice = f"wait for it, cancel it (penstock jobs cancel {row.job_id}), or enqueue with another policy or key"
        if holder.advice is not None:
            advice = f"{holder.advice}; or: {advice}"
    return replace(holder, because=because, facts=facts, advice=advice)


def _holds(row: Any, state: State | None, now: datetime) -> bool:
    """Whether the key is held, as `ledger.transitions.enqueue` decides by the policy of its kind.

    The policy of a single call is not on record.
    """
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
