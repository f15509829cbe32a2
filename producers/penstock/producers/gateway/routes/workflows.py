"""Workflows over HTTP: `/v1/workflows`. As `penstock workflows`, for callers that may see their jobs.

To start one is to send its job.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from pydantic import ValidationError
from pydantic_core import from_json

from penstock.config.errors import InvalidJob, JobNotFound
from penstock.ledger.sql.database import Database
from penstock.ledger.workflows import commands
from penstock.ledger.workflows.commands import WorkflowDetails
from penstock.producers.gateway.auth.callers import Caller
from penstock.producers.gateway.dependencies import Authenticated, Deps, Here
from penstock.producers.gateway.models.workflows import Retry, WorkflowList, WorkflowSummary, WorkflowView
from penstock.producers.gateway.problems import Problem, invalid_body, invalid_json, workflow_not_found
from penstock.producers.gateway.requests.bodies import json_body, read_json, read_model
from penstock.producers.gateway.requests.options import Label
from penstock.producers.gateway.routes.jobs import JobId
from penstock.schemas.verbs import Verb
from penstock.schemas.workflows import WorkflowState

router = APIRouter(tags=["workflows"])

StepName = Annotated[Label, Path(description="The step that waits, or will.")]
# The answer's type is that of a step, of which the document knows nothing.
_ANSWER = {"description": "The answer: any JSON value, of the type that the step waits for."}


@router.get("/v1/workflows", operation_id="listWorkflows")
async def list_workflows(
    caller: Authenticated,
    deps: Here,
    state: Annotated[WorkflowState | None, Query(description="Only those in this state.")] = None,
    kind: Annotated[Label | None, Query(description="Only those of this kind.")] = None,
    before: Annotated[Label | None, Query(description="Go on after the one with this id.")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 50,
) -> WorkflowList:
    """The workflows that this caller may see, the newest first."""
    rows = await asyncio.to_thread(_find, deps.database, caller, state, kind, before, limit)
    return WorkflowList(workflows=[WorkflowSummary.model_validate(row, from_attributes=True) for row in rows])


@router.get("/v1/workflows/{id}", operation_id="getWorkflow", response_model_exclude_unset=True)
async def get_workflow(id: JobId, caller: Authenticated, deps: Here) -> WorkflowView:
    """A workflow with its steps. It exists once a worker has started its job."""
    return _view(caller, await _visible(deps, caller, id))


@router.post(
    "/v1/workflows/{id}/steps/{step}/signal",
    operation_id="signalStep",
    response_model_exclude_unset=True,
    openapi_extra=json_body(_ANSWER),
)
async def signal_step(id: JobId, step: StepName, request: Request, caller: Authenticated, deps: Here) -> WorkflowView:
    """Answer a step that waits for an event or an approval, or will. The dispatcher takes it on from there."""
    body = await read_json(request)
    try:
        answer = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise invalid_json(str(error)) from None
    await _visible(deps, caller, id)
    with _refused(f"answer to step {step}"):
        await asyncio.to_thread(commands.signal, deps.database, id, step, answer, actor=caller.name, unchecked=False)
    return _view(caller, await _visible(deps, caller, id))


@router.post("/v1/workflows/{id}/cancel", operation_id="cancelWorkflow", response_model_exclude_unset=True)
async def cancel_workflow(
    id: JobId,
    caller: Authenticated,
    deps: Here,
    compensate: Annotated[bool, Query(description="Whether what was done is undone.")] = True,
) -> WorkflowView:
    """Cancel a workflow: what waits of it at once, what runs through its workers (it is `cancelling` then)."""
    await _visible(deps, caller, id)
    await asyncio.to_thread(commands.cancel, deps.database, id, actor=caller.name, undo=compensate)
    return _view(caller, await _visible(deps, caller, id))


@router.post(
    "/v1/workflows/{id}/retry",
    operation_id="retryWorkflow",
    response_model_exclude_unset=True,
    openapi_extra=json_body(Retry.model_json_schema(), required=False),
)
async def retry_workflow(id: JobId, request: Request, caller: Authenticated, deps: Here) -> WorkflowView:
    """Take up a workflow that has ended: what failed is tried again, and what was done stays done."""
    options = await read_model(request, Retry, "retry of a workflow")
    await _visible(deps, caller, id)
    with _refused("input of this workflow", "input"):
        await asyncio.to_thread(
            commands.retry,
            deps.database,
            id,
            actor=caller.name,
            from_step=options.from_step,
            everything=options.everything,
            edit=options.input,
        )
    return _view(caller, await _visible(deps, caller, id))


def _find(
    database: Database,
    caller: Caller,
    state: WorkflowState | None,
    kind: str | None,
    before: str | None,
    limit: int,
) -> list[Any]:
    scope = {"kinds": caller.kinds, "queues": caller.queues, "tenants": caller.tenants}
    visible_rows: list[Any] = []
    while len(visible_rows) < limit:
        rows = commands.find(database, state=state, kind=kind, before=before, limit=limit, **scope)
        visible_rows += [row for row in rows if caller.may_see(row.kind, row.queue, row.tenant)]
        if len(rows) < limit:
            break
        before = rows[-1].id
    return visible_rows[:limit]


async def _visible(deps: Deps, caller: Caller, workflow_id: str) -> WorkflowDetails:
    """A workflow that this caller may see. Raises Problem (404); LedgerUnavailable."""
    try:
        details = await asyncio.to_thread(commands.show, deps.database, workflow_id)
    except JobNotFound:
        raise workflow_not_found() from None
    if not caller.may_see(details.row.kind, details.row.queue, details.row.tenant):
        raise workflow_not_found()
    return details


def _view(caller: Caller, details: WorkflowDetails) -> WorkflowView:
    """The workflow; its steps and errors only for a caller that may read."""
    hidden: dict[str, Any] = {} if caller.may(Verb.READ) else {"steps": [], "error": None}
    return WorkflowView.model_validate(details.as_json() | hidden)


@contextmanager
def _refused(what: str, *under: str) -> Iterator[None]:
    """Report what is not valid by its place in the body.

    Raises:
        Problem: (422) it is not valid; (409) no module imported here defines its type.
    """
    try:
        yield
    except InvalidJob as error:
        if isinstance(error.__cause__, ValidationError):
            raise invalid_body(error.__cause__, what, under=under) from None
        raise Problem(409, "wrong-state", str(error)) from None
