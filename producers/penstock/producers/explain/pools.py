"""Who is there to send a job, and to run it."""

from __future__ import annotations

from typing import Any

from penstock.config.errors import BrokerUnavailable
from penstock.producers.explain.case import Case
from penstock.producers.explain.queue_position import Place, Places
from penstock.producers.explain.wording import seen

NAMED = 20
"""Workers named in the facts."""
START_DISPATCHER = "start a dispatcher: penstock dispatcher"


def no_dispatcher(case: Case) -> str | None:
    """When the last one was seen; None: one lives."""
    return None if case.roster.dispatchers else seen(case.dispatcher, case.now, case.lease)


def pool_trouble(case: Case, facts: dict[str, Any]) -> tuple[str, str | None]:
    """What is wrong with the workers of a job's queue, and what to do; "" where nothing is."""
    queue, kind = case.job.queue, case.job.kind
    consuming = case.roster.consuming(queue)
    facts["workers"] = {one.name: list(one.queues) for one in (consuming or case.roster.workers)[:NAMED]}
    if not consuming:
        facts["last_worker"] = None if case.consumer is None else case.consumer.name
        others = ", ".join(sorted(case.roster.queues()))
        instead = f"those that live consume {others}" if others else "no worker lives"
        return (
            f"no live worker consumes queue {queue!r} ({instead}; {seen(case.consumer, case.now, case.lease)})",
            f"start one: penstock worker --queues {queue} --import …",
        )
    names = {kind} if case.kind is None else {kind, case.kind.name}
    unable = [one for one in consuming if not names & one.kinds]
    facts["without_handler"] = [one.name for one in unable[:NAMED]]
    advice = f"give them --import with the module that handles {kind}"
    if len(unable) == len(consuming):
        return (
            f"no live worker of queue {queue!r} has a handler for {kind} (there are {len(consuming)}): the one that "
            "gets it makes a dead letter of it",
            f"{advice}; if it is dead by then: penstock deadletters replay {case.id}",
        )
    if unable:
        return "", f"{len(unable)} of {len(consuming)} workers of its queue have no handler for {kind}: {advice}"
    return "", None


def find_place(places: Places | None, job_id: str, queue: str, priority: str, facts: dict[str, Any]) -> Place | None:
    """Where the broker has it; None: it was not or cannot be asked."""
    if places is None:
        return None
    try:
        place = places.find(job_id, queue, priority)
    except BrokerUnavailable as error:
        facts["broker"] = f"cannot be asked: {error}"
        return None
    facts["waiting_in_queue"] = place.waiting
    if place.ahead is not None:
        facts["position" if place.exact else "position_at_most"] = place.ahead + 1
    facts["fetched_by"] = place.held_by
    return place


def position(place: Place, queue: str) -> str:
    number = f"{(place.ahead or 0) + 1:,}"
    return f"it waits in queue {queue!r} at position {number if place.exact else f'{number} at most'}"
