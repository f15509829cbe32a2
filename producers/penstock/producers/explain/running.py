"""Jobs that run, or whose worker has died."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from penstock.ledger.transitions.lost import SILENT_LEASES
from penstock.producers.explain.case import Case, Explanation
from penstock.producers.explain.pools import START_DISPATCHER, find_position, no_dispatcher, pool_trouble
from penstock.producers.explain.queue_position import QueuePosition, QueuePositions
from penstock.producers.explain.wording import present, when
from penstock.schemas.states import State


def explain_running(case: Case, positions: QueuePositions | None) -> Explanation:
    job, holder = case.job, case.holder
    facts: dict[str, Any] = {"worker": job.worker, "started_at": job.started_at, "error": job.error}
    facts["progress"] = present({name: getattr(job, f"progress_{name}") for name in ("done", "total", "note")})
    if job.started_at is not None and case.kind is not None and case.kind.timeout is not None:
        facts["deadline"] = job.started_at + case.kind.timeout
    if holder is not None:
        facts["lease_until"] = holder.lease_until
        if not case.scope.is_bounded:
            facts |= {"host": holder.host, "pid": holder.pid}
            if holder.pool_pids is not None:
                facts["pool"] = {"kind": "processes", "pids": holder.pool_pids}
    if holder is None or holder not in case.roster:
        return _orphan(case, positions, facts)
    pool = "" if holder.pool_pids is None else f", its pool: {', '.join(map(str, holder.pool_pids)) or 'empty'}"
    process = "" if case.scope.is_bounded else f" (host {holder.host}, pid {holder.pid}{pool})"
    if job.started_at is None:
        because = f"claimed by worker {job.worker}{process}, next to run: it has no slot yet, or has just got one"
    else:
        because = (
            f"it runs since {when(job.started_at, case.now)} on worker {job.worker}{process}, "
            f"attempt {job.attempt}{_apart(job)}{_progress(job)}"
        )
    advice = None
    deadline = facts.get("deadline")
    if job.cancel_requested:
        because += "; it was asked to stop"
    elif deadline is not None and deadline < case.now:
        because += f"; its deadline has passed, {when(deadline, case.now)}"
        advice = f"its handler does not stop by itself: penstock jobs cancel {case.id}, or restart that worker"
    elif deadline is not None:
        because += f"; its deadline is {when(deadline, case.now)}"
    return Explanation(case.id, State.RUNNING, because, facts, advice)


def _apart(job: Any) -> str:
    if not job.crashes:
        return ""
    return f", in a process of its own after {'a crash' if job.crashes == 1 else f'{job.crashes} crashes'}"


def _orphan(case: Case, positions: QueuePositions | None, facts: dict[str, Any]) -> Explanation:
    job, holder = case.job, case.holder
    over: datetime = job.started_at or case.now
    gone = "is not on record"
    if holder is not None:
        over = holder.stopped_at or holder.lease_until
        facts["ended"] = holder.ended
        how = f" ({holder.ended})" if holder.ended else ""
        gone = f"has stopped {when(over, case.now)}"
        if holder.stopped_at is None:
            gone = f"is dead or silent{how}: its lease ended {when(over, case.now)}"
    because = f"worker {job.worker}, which began attempt {job.attempt}, {gone}"
    # As dispatchers count: by the worker's lease, even if it stopped in order.
    given_up = (over if holder is None else holder.lease_until) + SILENT_LEASES * case.lease
    no_sender = no_dispatcher(case)
    if job.delivery == "at_most_once":
        facts["buried_at"] = given_up
        because += f"; as it must not run twice, a dispatcher makes it a dead letter, {when(given_up, case.now)}"
        return _needs_dispatcher(case, because, facts, no_sender)
    trouble, advice = pool_trouble(case, facts)
    position = find_position(case, positions, job.queue, job.priority, facts)
    if position is not None and position.there is False and not trouble:
        facts["resent_at"] = given_up
        because += f"; the broker does not have it, so a dispatcher sends it again, {when(given_up, case.now)}"
        return _needs_dispatcher(case, because, facts, no_sender)
    because += f"; {_taken_over(case, position, facts)}"
    if trouble:
        because += f"; but {trouble}"
    return Explanation(case.id, State.RUNNING, because, facts, advice)


def _taken_over(case: Case, position: QueuePosition | None, facts: dict[str, Any]) -> str:
    if position is not None and position.held_by not in (None, case.job.worker):
        return f"worker {position.held_by} has taken it over, and begins it as soon as it can"
    if position is not None and position.silent is not None:
        # Workers that take jobs over look every third of a lease.
        by = case.now + max(case.lease - position.silent, timedelta()) + case.lease / 3
        facts["taken_over_at"] = by
        return f"another worker takes it over by {when(by, case.now)}"
    return "another worker takes it over when the broker hands it out again"


def _needs_dispatcher(case: Case, because: str, facts: dict[str, Any], gone: str | None) -> Explanation:
    if gone is None:
        return Explanation(case.id, State.RUNNING, because, facts)
    because += f"; but no dispatcher lives ({gone})"
    return Explanation(case.id, State.RUNNING, because, facts, START_DISPATCHER)


def _progress(job: Any) -> str:
    if job.progress_done is None:
        return ""
    total = "" if job.progress_total is None else f" of {job.progress_total:,}"
    return f", {job.progress_done:,}{total} done" + (f" ({job.progress_note})" if job.progress_note else "")
