"""Jobs that are not on record: still in the broker, or never or no longer there."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from penstock.producers.explain.case import Case, Explanation
from penstock.producers.explain.pools import START_DISPATCHER, describe_position, find_position, no_dispatcher
from penstock.producers.explain.queue_position import QueuePosition, QueuePositions
from penstock.producers.explain.wording import present, when
from penstock.schemas.jobs.kind import DISPATCHER_QUEUE, PRIORITIES
from penstock.schemas.wire.ids import made_at

_ELSE = (
    "it never came to this broker and ledger, was of a kind with track=False and succeeded, or was pruned or erased "
    "since"
)


def explain_unknown(case: Case, positions: QueuePositions | None, queues: Iterable[str]) -> Explanation:
    facts: dict[str, Any] = {"made_at": made_at(case.id)}
    others = {queue for queue in queues if case.scope.includes_queue(queue)}
    names = sorted({*others, *case.live_queues(), DISPATCHER_QUEUE})
    lane, sure = _search(case, positions, names, facts)
    if lane is not None:
        return _explain_found(case, *lane, facts)
    time = f", its id was made {when(facts['made_at'], case.now)}" if facts["made_at"] else ""
    because = f"the ledger has no record of it{time}; either it waits in the broker, unseen by any worker, or {_ELSE}"
    if sure:
        because = f"the ledger has no record of it{time}, nor has the broker (queues {', '.join(names)}); {_ELSE}"
    advice = (
        "compare the broker URL, database URL and prefix with those of its producer; see penstock queues list for what "
        f"waits, and penstock audit list --subject {case.id} for what people decided"
    )
    return Explanation(case.id, None, because, present(facts), advice)


def _search(
    case: Case, positions: QueuePositions | None, queues: Iterable[str], facts: dict[str, Any]
) -> tuple[tuple[str, str, QueuePosition] | None, bool]:
    """The lane (queue and priority) that has the job, and its position; and whether the answer is sure."""
    sure = positions is not None
    waiting: dict[str, int] = {}
    for queue in queues:
        for priority in PRIORITIES:
            looked: dict[str, Any] = {}
            position = find_position(case, positions, queue, priority, looked)
            if position is None:
                facts |= looked
                return None, False
            if position.there:
                facts |= looked
                return (queue, priority, position), True
            sure = sure and position.there is False
            waiting[queue] = position.waiting
    facts["waiting"] = {queue: count for queue, count in waiting.items() if count}
    return None, sure


def _explain_found(
    case: Case, queue: str, priority: str, position: QueuePosition, facts: dict[str, Any]
) -> Explanation:
    facts |= {"queue": queue, "priority": priority}
    if queue == DISPATCHER_QUEUE:
        because, advice = "it is on its way to the ledger, through the dispatcher's queue", None
        if (gone := no_dispatcher(case)) is not None:
            because, advice = f"{because}; no dispatcher lives to take it in ({gone})", START_DISPATCHER
        return Explanation(case.id, None, because, present(facts), advice)
    consuming = case.roster.consuming(queue)
    facts["workers"] = case.queues_of(consuming or case.roster.workers)
    if position.held_by is not None:
        because = f"worker {position.held_by} has fetched it from queue {queue!r}, and begins it as soon as it can"
    else:
        because = describe_position(position, queue)
    if not consuming:
        because, advice = f"no live worker consumes queue {queue!r}; {because}", _start(queue)
        return Explanation(case.id, None, because, present(facts), advice)
    count = len(consuming)
    because += f" ({count} live worker{'' if count == 1 else 's'}); it is on record when it begins"
    return Explanation(case.id, None, because, present(facts))


def _start(queue: str) -> str:
    return f"start one: penstock worker --queues {queue} --import …"
