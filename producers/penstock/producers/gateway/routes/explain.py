"""Why a job isn't running, over HTTP: `GET /v1/jobs/{id}/explain`."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter

from penstock.config.errors import JobNotFound
from penstock.producers.explain import Explanation, explain
from penstock.producers.gateway.dependencies import Authenticated, Here
from penstock.producers.gateway.models.explanations import ExplanationView
from penstock.producers.gateway.problems import Problem, job_not_found
from penstock.producers.gateway.routes.jobs import JobId, is_sender

router = APIRouter(tags=["jobs"])


@router.get("/v1/jobs/{id}/explain", operation_id="explainJob")
async def explain_job(id: JobId, caller: Authenticated, deps: Here) -> ExplanationView:
    """Why the job isn't running, or what became of it, and what to do about it.

    To a key that is bound to kinds, queues or tenants, no job, queue or host outside of its bounds is named.
    """

    is_own = is_sender(deps, caller, id)

    def explain_it() -> Explanation:
        return explain(
            deps.database,
            id,
            deps.positions,
            lease=deps.settings.lease,
            queues=deps.queues,
            limits=deps.limits,
            scope=caller.scope,
            sent_by_caller=is_own,
        )

    try:
        explanation = await asyncio.to_thread(explain_it)
    except JobNotFound:
        raise job_not_found() from None
    is_known = explanation.state is not None or not explanation.facts.keys().isdisjoint({"kind", "queue"})
    if not is_known and not is_own:  # and the caller has no bounds
        raise Problem(404, "job-not-found", f"{explanation.because}; {explanation.advice}")
    return ExplanationView(
        id=explanation.job_id,
        state=explanation.state,
        because=explanation.because,
        facts=explanation.facts,
        advice=explanation.advice,
    )
