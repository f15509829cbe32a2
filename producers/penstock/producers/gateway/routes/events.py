"""Events that become jobs: `POST /v1/events`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from pydantic_core import from_json, to_json
from starlette.responses import Response

from penstock.config.errors import DuplicateJob, InvalidEvent, PenstockError
from penstock.producers.gateway.auth.callers import Caller
from penstock.producers.gateway.dependencies import Authenticated, Deps, Here
from penstock.producers.gateway.problems import Problem, problem_of
from penstock.producers.gateway.requests.bodies import JSON, read_json
from penstock.producers.traces import traced
from penstock.schemas.events import cloudevents, webhooks
from penstock.schemas.events.cloudevents import Event
from penstock.schemas.events.rules import RuleJob, jobs_of, kinds_of

router = APIRouter(tags=["events"])

_HEADERS = [
    {"name": f"ce-{name}", "in": "header", "schema": {"type": "string"}, "description": "In binary content only."}
    for name in ("specversion", "id", "source", "type", "subject", "time")
]


class EventJob(BaseModel):
    """A job that a rule made of an event."""

    rule: str
    id: str
    kind: str
    created: Annotated[bool, Field(description="False where an earlier job takes the place of the unique one.")]


class EventAnswer(BaseModel):
    """The result for an event; `jobs` is empty if no rule fits it."""

    status: int
    jobs: list[EventJob] = []
    problem: dict[str, Any] | None = None


class EventsAnswer(BaseModel):
    """The result for each event, in the order of the request."""

    accepted: int
    refused: int
    events: list[EventAnswer]


@router.post(
    "/v1/events",
    operation_id="sendEvents",
    status_code=202,
    response_model=EventsAnswer,
    responses={207: {"model": EventsAnswer, "description": "Some of a batch were refused."}},
    openapi_extra={
        "parameters": _HEADERS,
        "requestBody": {
            "required": True,
            "content": {
                cloudevents.STRUCTURED: {"schema": {"type": "object"}},
                cloudevents.BATCH: {"schema": {"type": "array", "items": {"type": "object"}}},
                JSON: {"schema": {"description": "An event's data, or a notification of S3."}},
            },
        },
    },
)
async def send_events(request: Request, caller: Authenticated, deps: Here) -> Response:
    """Take CloudEvents, one or a batch. Rules of penstock.toml turn them into jobs. An event that comes again, by its
    source and id, makes no further job."""
    events = await _read(request, deps)
    most = deps.settings.gateway.max_batch
    if len(events) > most:
        raise Problem(422, "invalid-fields", f"a batch holds up to {most} events")
    deps.count(caller, max(len(events) - 1, 0))
    answers = [await _answer(event, caller, deps) for event in events]
    return respond(answers)


async def _read(request: Request, deps: Deps) -> Sequence[Event | InvalidEvent]:
    try:
        if "ce-specversion" not in request.headers and request.headers.get("content-type", "").startswith(JSON):
            document = from_json(await read_json(request))
            if isinstance(document, dict) and ("Records" in document or document.get("Event") == "s3:TestEvent"):
                return list(webhooks.s3(document, deps.settings.storage_url))
        return cloudevents.parse(request.headers, await request.body())
    except InvalidEvent as error:
        raise refused(error) from None
    except ValueError as error:
        raise refused(InvalidEvent("the body", f"not JSON: {error}")) from None


async def _answer(event: Event | InvalidEvent, caller: Caller, deps: Deps) -> EventAnswer:
    try:
        if isinstance(event, InvalidEvent):
            raise refused(event)
        return await accept_event(event, caller, deps)
    except Problem as problem:
        if problem.status_code >= 500:
            raise  # not the event's fault: the whole request may be repeated
        deps.metrics.refused.labels(problem.name).inc()
        return EventAnswer(status=problem.status_code, problem=problem.body())


async def accept_event(event: Event, caller: Caller, deps: Deps) -> EventAnswer:
    """Send the jobs that the rules make of an event, if it was not taken before.

    Raises:
        Problem: the event does not make the job of a rule that fits; the caller may not send it; or it cannot be sent
            now, and the event may come again.
    """
    if not all(map(caller.is_allowed, kinds_of(event, deps.settings.events))):
        # Neither the rule nor its kind is named: the caller may not know of them.
        raise Problem(403, "kind-not-allowed", "a rule makes a job of this event that this key may not send")
    try:
        matches = jobs_of(event, deps.settings.events)
    except InvalidEvent as error:
        raise refused(error) from None
    if not matches:
        return EventAnswer(status=202)
    tenant = event.extensions.get("tenant")
    options: dict[str, Any] = {}
    if (allowed := caller.tenant(tenant if isinstance(tenant, str) else None)) is not None:
        options["tenant"] = allowed
    # The key includes the rules, so a rule added later still fires for an event seen before.
    identity = "\n".join([event.source, event.id, *(match.rule for match in matches)])
    key = hashlib.sha256(identity.encode()).hexdigest()
    keyed = await deps.idempotency_keys.start(
        caller.id, key, [b"event"], [deps.job_ids.new(caller.id) for _ in matches]
    )
    if keyed.answer is not None:
        return EventAnswer.model_validate_json(keyed.answer[1])
    try:
        jobs = await _send(event, matches, keyed.job_ids, options, deps)
    except BaseException:
        await deps.idempotency_keys.abort(keyed)
        raise
    answer = EventAnswer(status=202, jobs=jobs)
    await deps.idempotency_keys.complete(keyed, 202, to_json(answer))
    return answer


async def _send(
    event: Event, matches: Sequence[RuleJob], ids: Sequence[str], options: dict[str, Any], deps: Deps
) -> list[EventJob]:
    parent = event.extensions.get("traceparent")
    with traced(parent if isinstance(parent, str) else None):
        items = [(match.job, {**options, "id": id}) for match, id in zip(matches, ids, strict=True)]
        answers = await deps.producer.enqueue_each(items)
    jobs = []
    for match, sent in zip(matches, answers, strict=True):
        if isinstance(sent, DuplicateJob):
            jobs.append(EventJob(rule=match.rule, id=sent.existing_id, kind=sent.kind, created=False))
        elif isinstance(sent, PenstockError):
            raise problem_of(sent)
        else:
            deps.metrics.sent(sent.kind).inc()
            jobs.append(EventJob(rule=match.rule, id=sent.id, kind=sent.kind, created=sent.created))
    return jobs


def refused(error: InvalidEvent) -> Problem:
    errors = [{"attribute": error.attribute, "detail": error.detail}]
    status = 415 if error.attribute == "content-type" else 422
    return Problem(status, "invalid-event", f"the event is not valid: {error}", errors=errors)


def respond(answers: Sequence[EventAnswer]) -> Response:
    """The answer: for a single event with its own status; for several 202, or 207 if some were refused."""
    bad = [answer for answer in answers if answer.problem is not None]
    if len(answers) == 1 and bad:
        return Response(to_json(bad[0].problem), bad[0].status, None, "application/problem+json")
    batch = EventsAnswer(accepted=len(answers) - len(bad), refused=len(bad), events=list(answers))
    return Response(batch.model_dump_json(exclude_none=True), 207 if bad else 202, None, JSON)
