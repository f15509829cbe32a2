"""Jobs that the broker has and that have not started."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from penstock.ledger.transitions.lost import PATIENT_LEASES
from penstock.producers.explain.case import Case, Explanation
from penstock.producers.explain.pools import (
    START_DISPATCHER,
    describe_position,
    find_position,
    no_dispatcher,
    pool_trouble,
)
from penstock.producers.explain.queue_position import QueuePosition, QueuePositions
from penstock.producers.explain.wording import when
from penstock.schemas.states import State


def explain_queued(case: Case, positions: QueuePositions | None) -> Explanation:
    job = case.job
    facts: dict[str, Any] = {"sent_at": job.due_at}
    position = find_position(case, positions, job.queue, job.priority, facts)
    trouble, advice = pool_trouble(case, facts)
    if position is not None and position.there is False:
        facts["resent_from"] = _missed_from(case)
        because, advice = _lost(case, trouble, advice)
    elif trouble:
        because = trouble
        if position is not None and position.ahead is not None:
            because += f"; {describe_position(position, job.queue)}"
    else:
        because = _in_queue(case, position)
    if job.expires_at is not None and job.expires_at <= case.now:
        because += f"; it has expired, {when(job.expires_at, case.now)}, and will be discarded, not run"
    return Explanation(case.id, State.QUEUED, because, facts, advice)


def _in_queue(case: Case, position: QueuePosition | None) -> str:
    queue, count = case.job.queue, len(case.roster.consuming(case.job.queue))
    pool = f"{count} live worker{'' if count == 1 else 's'}"
    if position is None:
        return f"it waits in queue {queue!r} ({pool}), its position is unknown"
    if position.held_by is not None:
        return f"worker {position.held_by} has fetched it, and begins it when one of its running jobs ends"
    if position.ahead is not None:
        return f"{describe_position(position, queue)} ({pool})"
    return (
        f"nothing waits in its lane of queue {queue!r}: a worker has fetched it and is busy ({pool}), or the broker "
        f"has lost it, and a dispatcher sends it again, from {when(_missed_from(case), case.now)} on"
    )


def _lost(case: Case, trouble: str, advice: str | None) -> tuple[str, str | None]:
    because = f"it was sent {when(_sent_at(case), case.now)}, and the broker does not have it"
    if (gone := no_dispatcher(case)) is not None:
        return f"{because}; no dispatcher lives to send it again ({gone})", START_DISPATCHER
    if trouble:
        return f"{because}; it is sent again once a worker runs its queue: {trouble}", advice
    name = case.roster.dispatchers[0].name
    return f"{because}; dispatcher {name} sends it again, from {when(_missed_from(case), case.now)} on", None


def _sent_at(case: Case) -> datetime:
    sent: datetime = case.job.due_at or case.job.enqueued_at
    return sent


def _missed_from(case: Case) -> datetime:
    return _sent_at(case) + PATIENT_LEASES * case.lease
