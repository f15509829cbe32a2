"""Dead letters over HTTP: `/v1/deadletters`. As `penstock deadletters`, within the bounds of the caller."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from penstock.config.errors import InvalidJob, JobNotFound
from penstock.ledger.queries import dead_letters
from penstock.ledger.transitions import replay as replays
from penstock.producers.gateway.auth.callers import Caller
from penstock.producers.gateway.dependencies import Authenticated, Deps, Here
from penstock.producers.gateway.models.dead_letters import (
    AttemptView,
    Choice,
    DeadLetterList,
    DeadLetterSummary,
    DeadLetterView,
    Decided,
    Discard,
    DiscardAnswer,
    GroupList,
    GroupQuery,
    GroupView,
    ListQuery,
    Replay,
    ReplayAnswer,
    Replayed,
)
from penstock.producers.gateway.problems import Problem, dead_letter_not_found, pointer, problem_of
from penstock.producers.gateway.requests.bodies import JSON, json_body, read_model
from penstock.producers.gateway.routes.jobs import JobId

router = APIRouter(tags=["dead letters"])


@router.get("/v1/deadletters", operation_id="listDeadLetters")
async def list_dead_letters(query: Annotated[ListQuery, Query()], caller: Authenticated, deps: Here) -> DeadLetterList:
    """The dead letters that wait for a decision, the newest first."""
    selection = query.selection(caller.scope)

    def find_page() -> DeadLetterList:
        rows = dead_letters.find(deps.database, selection, before=query.before, limit=query.limit)
        return DeadLetterList(
            dead_letters=[DeadLetterSummary.model_validate(row, from_attributes=True) for row in rows]
        )

    try:
        return await asyncio.to_thread(find_page)
    except JobNotFound:
        errors = [{"parameter": "before", "detail": "there is no such dead letter; start again without it"}]
        raise Problem(422, "invalid-parameters", "a query parameter is wrong; see errors", errors=errors) from None


@router.get("/v1/deadletters/groups", operation_id="listDeadLetterGroups")
async def list_groups(query: Annotated[GroupQuery, Query()], caller: Authenticated, deps: Here) -> GroupList:
    """The dead letters counted by what they died of, the largest group first."""
    groups = await asyncio.to_thread(
        dead_letters.groups, deps.database, query.selection(caller.scope), limit=query.limit
    )
    return GroupList(groups=[GroupView.model_validate(group, from_attributes=True) for group in groups])


@router.get("/v1/deadletters/{id}", operation_id="getDeadLetter")
async def get_dead_letter(id: JobId, caller: Authenticated, deps: Here) -> DeadLetterView:
    """A dead letter with its payload and attempts."""

    try:
        details = await asyncio.to_thread(dead_letters.show, deps.database, id, scope=caller.scope)
    except JobNotFound:
        raise dead_letter_not_found() from None
    job = details.job
    summary = {name: getattr(details.row, name) for name in _SHOWN}
    return DeadLetterView(
        **summary,
        key=None if job is None else job.key,
        tenant=None if job is None else job.tenant,
        unread=details.row.raw is not None,
        payload=details.payload,
        attempts=[AttemptView.model_validate(attempt, from_attributes=True) for attempt in details.attempts],
    )


@router.post(
    "/v1/deadletters/replay",
    operation_id="replayDeadLetters",
    response_model=ReplayAnswer,
    responses={207: {"model": ReplayAnswer, "description": "Some were refused."}},
    openapi_extra=json_body({"$ref": "#/components/schemas/Replay"}),
)
async def replay(request: Request, caller: Authenticated, deps: Here) -> Response:
    """Let dead letters be tried again: their jobs are due now, with failures and crashes forgotten."""
    choice = await read_model(request, Replay, "replay of dead letters")
    decide = partial(replays.replay, edit=choice.edit, per_second=choice.throttle)
    try:
        if choice.edit and caller.kinds is None:
            await _check_edit(deps, caller, choice, decide)
        verdicts = await _decide(deps, caller, choice, decide)
    except InvalidJob as error:
        raise _wrong_field("edit", str(error)) from None
    results = [Replayed(due_at=verdict.due_at, **_result(verdict)) for verdict in verdicts]
    refused = sum(result.problem is not None for result in results)
    answer = ReplayAnswer(
        dry_run=choice.dry_run, replayed=len(results) - refused, refused=refused, dead_letters=results
    )
    return _response(answer)


@router.post(
    "/v1/deadletters/discard",
    operation_id="discardDeadLetters",
    response_model=DiscardAnswer,
    responses={207: {"model": DiscardAnswer, "description": "Some were refused."}},
    openapi_extra=json_body({"$ref": "#/components/schemas/Discard"}),
)
async def discard(request: Request, caller: Authenticated, deps: Here) -> Response:
    """Close dead letters: nothing is to be done about them. They stay on record, and their jobs dead."""
    choice = await read_model(request, Discard, "discard of dead letters")
    verdicts = await _decide(deps, caller, choice, partial(replays.discard, reason=choice.reason))
    results = [Decided(**_result(verdict)) for verdict in verdicts]
    refused = sum(result.problem is not None for result in results)
    answer = DiscardAnswer(
        dry_run=choice.dry_run, discarded=len(results) - refused, refused=refused, dead_letters=results
    )
    return _response(answer)


_SHOWN = ("id", "kind", "queue", "reason", "detail", "fingerprint", "created_at", "replayed_at", "discarded_at")


Decide = Callable[..., list[replays.ReplayResult]]


async def _check_edit(deps: Deps, caller: Caller, choice: Choice, decide: Decide) -> None:
    """Raises Problem (403): the caller, who sets fields of the jobs, may not send their kinds."""
    for verdict in await _decide(deps, caller, choice.model_copy(update={"dry_run": True}), decide):
        if verdict.kind is not None and verdict.problem is None:
            caller.find_kind(verdict.kind)


async def _decide(deps: Deps, caller: Caller, choice: Choice, decide: Decide) -> list[replays.ReplayResult]:
    """Replay or discard the chosen dead letters. Raises Problem (422): see `_limit`."""
    selection, limit = choice.selection(caller.scope), _limit(deps, choice)
    return await asyncio.to_thread(
        decide, deps.database, selection, actor=caller.name, dry_run=choice.dry_run, limit=limit
    )


def _response(answer: ReplayAnswer | DiscardAnswer) -> Response:
    return Response(answer.model_dump_json(exclude_none=True), 207 if answer.refused else 200, None, JSON)


def _limit(deps: Deps, choice: Choice) -> int:
    """The most dead letters to decide about. Raises Problem (422): a request may not name as many."""
    most = deps.settings.gateway.max_batch
    if choice.ids is not None and len(choice.ids) > most:
        raise _wrong_field("ids", f"at most {most} ids")
    if choice.limit is not None and choice.limit > most:
        raise _wrong_field("limit", f"at most {most}")
    return choice.limit or most


def _result(verdict: replays.ReplayResult) -> dict[str, Any]:
    problem = None
    if isinstance(verdict.problem, JobNotFound):
        problem = dead_letter_not_found().body()
    elif verdict.problem is not None:
        problem = problem_of(verdict.problem).body()
    return {"id": verdict.id, "kind": verdict.kind, "queue": verdict.queue, "problem": problem}


def _wrong_field(name: str, detail: str) -> Problem:
    errors = [{"pointer": pointer([name]), "detail": detail}]
    return Problem(422, "invalid-fields", "the body cannot be used; see errors", errors=errors)
