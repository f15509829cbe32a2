"""The dispatchers that send a job, the workers that run it, and its position in the queue."""

from __future__ import annotations

from typing import Any

from penstock.config.errors import BrokerUnavailable
from penstock.producers.explain.case import NAMED, Case
from penstock.producers.explain.queue_position import QueuePosition, QueuePositions
from penstock.producers.explain.wording import seen

START_DISPATCHER = "start a dispatcher: penstock dispatcher"


def no_dispatcher(case: Case) -> str | None:
    """When the last dispatcher was seen; None: one is alive."""
    return None if case.roster.dispatchers else seen(case.dispatcher, case.now, case.lease)


def pool_trouble(case: Case, facts: dict[str, Any]) -> tuple[str, str | None]:
    """The trouble with the workers of a job's queue, "" if there is none; and what to do."""
    queue, kind = case.job.queue, case.job.kind
    consuming = case.roster.consuming(queue)
    facts["workers"] = case.queues_of(consuming or case.roster.workers)
    if not consuming:
        facts["last_worker"] = None if case.consumer is None else case.consumer.name
        if leavers := case.roster.told_to_leave(queue):
            facts["told_to_stop"] = [worker.name for worker in leavers[:NAMED]]
            names = ", ".join(facts["told_to_stop"])
            return (
                f"no live worker consumes queue {queue!r}: {len(leavers)} were told to stop consuming it ({names})",
                f"celery control add_consumer {queue}, or start another: penstock worker --queues {queue} --import …",
            )
        others = ", ".join(case.live_queues())
        instead = f"those that live consume {others}" if others else "no worker lives"
        return (
            f"no live worker consumes queue {queue!r} ({instead}; {seen(case.consumer, case.now, case.lease)})",
            f"start one: penstock worker --queues {queue} --import …",
        )
    able = case.able(consuming)
    unable = [worker for worker in consuming if worker not in able]
    facts["without_handler"] = [worker.name for worker in unable[:NAMED]]
    advice = f"give them --import with the module that handles {kind}"
    if len(unable) == len(consuming):
        return (
            f"no live worker of queue {queue!r} has a handler for {kind} (there are {len(consuming)}): the one that "
            "gets it holds it back for one that does (unknown_kind_grace), and then makes a dead letter of it",
            f"{advice}; if it is dead by then: penstock deadletters replay {case.id}",
        )
    if unable:
        return "", f"{len(unable)} of {len(consuming)} workers of its queue have no handler for {kind}: {advice}"
    return "", None


def find_position(
    case: Case, positions: QueuePositions | None, queue: str, priority: str, facts: dict[str, Any]
) -> QueuePosition | None:
    """Where the broker has the job; None: the broker was not asked, or cannot be reached."""
    if positions is None:
        return None
    try:
        position = positions.find(case.id, queue, priority)
    except BrokerUnavailable as error:
        facts["broker"] = "cannot be asked" if case.scope.is_bounded else f"cannot be asked: {error}"
        return None
    facts["waiting_in_queue"] = position.waiting
    if position.ahead is not None:
        facts["position" if position.exact else "position_at_most"] = position.ahead + 1
    facts["fetched_by"] = position.held_by
    return position


def describe_position(position: QueuePosition, queue: str) -> str:
    number = f"{(position.ahead or 0) + 1:,}"
    return f"it waits in queue {queue!r} at position {number if position.exact else f'{number} at most'}"
