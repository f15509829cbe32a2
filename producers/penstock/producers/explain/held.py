"""Jobs that a worker did not know, held back for workers that do, as during a rolling deploy."""

from __future__ import annotations

from penstock.producers.explain.case import NAMED, Case, Explanation
from penstock.producers.explain.pools import START_DISPATCHER, no_dispatcher, pool_trouble
from penstock.producers.explain.wording import short, when
from penstock.schemas.states import State

_NO_HANDLER = ("unknown_kind", "no_handler")


def explain_held(case: Case) -> Explanation:
    job, held = case.job, case.held
    able = [worker.name for worker in case.able(case.roster.consuming(job.queue))]
    facts = {
        "held_back_by": held.worker,
        "reason": held.reason,
        "detail": held.detail,
        "held_since": held.since,
        "held_until": held.until,
        "tried_again_at": held.due_at,
        "with_handler": able[:NAMED],
    }
    because = (
        f"held back for workers that know it: worker {held.worker} does not ({held.reason}: {short(held.detail)}); it "
        f"is tried again until {when(held.until, case.now)}, and then becomes a dead letter"
    )
    trouble, advice = pool_trouble(case, facts)
    if trouble:
        because += f"; {trouble}"
    elif able:
        names = ", ".join(able[:NAMED])
        because += f"; {len(able)} live worker{'' if len(able) == 1 else 's'} of its queue handle {job.kind}: {names}"
        if held.reason not in _NO_HANDLER:
            advice = f"deploy the newer code of {job.kind} to the workers of queue {job.queue!r}"
    if (gone := no_dispatcher(case)) is not None:
        because, advice = f"{because}; and no dispatcher lives to send it again ({gone})", START_DISPATCHER
    return Explanation(case.id, State(job.state), because, facts, advice)
