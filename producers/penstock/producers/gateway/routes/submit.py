"""Submission of jobs: `POST /v1/jobs/{kind}`, and `POST /v1/jobs` for many."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json, to_json
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from penstock.config.errors import DuplicateJob, InvalidJob, PenstockError, QueueFull
from penstock.producers.gateway.auth.callers import Caller
from penstock.producers.gateway.dependencies import Authenticated, Deps, Here, authenticated, deps_of
from penstock.producers.gateway.problems import MOST_ERRORS, Problem, invalid_body, invalid_json, problem_of
from penstock.producers.gateway.requests.bodies import JSON, json_body, read_json
from penstock.producers.gateway.requests.options import Options, read_options
from penstock.producers.handles.handles import AsyncJobHandle
from penstock.producers.traces import traced
from penstock.schemas.jobs.job import Job
from penstock.schemas.jobs.kind import Kind

router = APIRouter()


class Accepted(BaseModel):
    """A job that the broker has."""

    id: str
    kind: str
    queue: str
    created: Annotated[bool, Field(description="False where an earlier job takes the place of this unique one.")]


class Item(Options):
    """A job of a batch: its kind, its fields, and its options."""

    kind: str
    payload: dict[str, Any] = Field(
        default_factory=dict, description="The job's fields, as the schema of its kind says."
    )


class Batch(BaseModel):
    """Jobs to send, in order."""

    model_config = ConfigDict(extra="forbid")

    jobs: list[Item] = Field(min_length=1)


class ItemAnswer(BaseModel):
    """The result for a job of a batch: `job` if it was accepted, else `problem`."""

    status: Annotated[int, Field(description="As of a request for this job alone.")]
    job: Accepted | None = None
    problem: dict[str, Any] | None = None


class BatchAnswer(BaseModel):
    """The result for each job, in the order of the request."""

    accepted: int
    refused: int
    jobs: list[ItemAnswer]


class _Raw(BaseModel):
    """A batch whose items are validated one by one, so that a wrong item does not spoil the others."""

    model_config = ConfigDict(extra="forbid")

    jobs: list[Any]


async def submit(request: Request) -> Response:
    """Check one job, send it, and answer when the broker has it."""
    request.scope["route"] = SUBMIT  # as FastAPI does, for metrics
    deps, caller = deps_of(request), await authenticated(request)
    kind = caller.find_kind(request.path_params["kind"])
    enqueue_options = _options_for(caller, kind, read_options(request))
    body = await read_json(request)
    try:
        job = kind.job.model_validate_json(body)
    except ValidationError as error:
        raise invalid_body(error, kind.name, kind=kind) from None

    async def send(ids: list[str]) -> tuple[int, bytes]:
        with traced(request.headers.get("traceparent")):
            handle = await deps.producer.enqueue(job, id=ids[0], **enqueue_options)
        deps.metrics.sent(kind.name).inc()
        return 202 if handle.created else 200, to_json(_accepted(handle))

    status, answer, again = await _send_once(request, caller, deps, 1, body, send)
    headers = {"Location": f"/v1/jobs/{from_json(answer)['id']}", **again}
    return Response(answer, status, headers, JSON)


class _Submit:
    """`submit` as an ASGI app. Starlette would put a function behind a second handler of exceptions."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await submit(Request(scope, receive, send))
        await response(scope, receive, send)


# A route of Starlette: one of FastAPI would double the cost of a request. `openapi` describes it, by kind.
SUBMIT = Route("/v1/jobs/{kind}", _Submit(), methods=["POST"], name="submit", include_in_schema=False)


@router.post(
    "/v1/jobs",
    operation_id="submitMany",
    tags=["jobs"],
    status_code=202,
    response_model=BatchAnswer,
    responses={207: {"model": BatchAnswer, "description": "Some were refused."}},
    openapi_extra=json_body(Batch.model_json_schema()),
)
async def submit_many(request: Request, caller: Authenticated, deps: Here) -> Response:
    """Send many jobs. Each is checked by itself; one that is refused does not stop the others."""
    body = await read_json(request)
    items = _items(body, deps)
    deps.count(caller, len(items) - 1)
    checked: list[tuple[Job, dict[str, Any]] | Problem] = []
    for number, item in enumerate(items):
        try:
            checked.append(_read_item(caller, item, number))
        except Problem as problem:
            checked.append(problem)

    async def send(ids: list[str]) -> tuple[int, bytes]:
        sendable = [
            (item[0], {**item[1], "id": id})
            for item, id in zip(checked, ids, strict=True)
            if not isinstance(item, Problem)
        ]
        with traced(request.headers.get("traceparent")):
            sent = iter(await deps.producer.enqueue_each(sendable))
        results = [item if isinstance(item, Problem) else next(sent) for item in checked]
        refused = sum(not isinstance(result, AsyncJobHandle) for result in results)
        most_errors = max(MOST_ERRORS // max(refused, 1), 1)
        answers = [_item_answer(result, deps, most_errors) for result in results]
        batch = BatchAnswer(accepted=len(answers) - refused, refused=refused, jobs=answers)
        return 207 if refused else 202, batch.model_dump_json(exclude_none=True).encode()

    status, answer, again = await _send_once(request, caller, deps, len(items), body, send)
    return Response(answer, status, again, JSON)


def _options_for(caller: Caller, kind: Kind, options: Options) -> dict[str, Any]:
    """The arguments of `enqueue` for this caller. Raises Problem (403): it may not send this."""
    caller.check_queue(kind, options.queue)
    enqueue_options = options.as_enqueue_options()
    if (tenant := caller.tenant(options.tenant)) is not None:
        enqueue_options["tenant"] = tenant
    return enqueue_options


def _items(body: bytes, deps: Deps) -> list[Any]:
    try:
        items = _Raw.model_validate(from_json(body)).jobs
    except ValidationError as error:
        raise invalid_body(error, "batch of jobs") from None
    except ValueError as error:
        raise invalid_json(str(error)) from None
    most = deps.settings.gateway.max_batch
    if not 1 <= len(items) <= most:
        errors = [{"pointer": "#/jobs", "detail": f"1 to {most} jobs"}]
        raise Problem(422, "invalid-fields", f"a batch holds 1 to {most} jobs", errors=errors)
    return items


def _read_item(caller: Caller, item: Any, number: int) -> tuple[Job, dict[str, Any]]:
    try:
        read = Item.model_validate(item)
    except ValidationError as error:
        raise invalid_body(error, "job", under=("jobs", number)) from None
    kind = caller.find_kind(read.kind)
    enqueue_options = _options_for(caller, kind, read)
    try:
        # As JSON: a strict field then accepts text for types that JSON does not have, such as a date.
        return kind.job.model_validate_json(to_json(read.payload)), enqueue_options
    except ValidationError as error:
        raise invalid_body(error, kind.name, under=("jobs", number, "payload"), kind=kind) from None


async def _send_once(
    request: Request,
    caller: Caller,
    deps: Deps,
    count: int,
    body: bytes,
    send: Callable[[list[str]], Awaitable[tuple[int, bytes]]],
) -> tuple[int, bytes, dict[str, str]]:
    """Send, or with an `Idempotency-Key` that was used before answer as then. Returns status, body and headers.

    Arguments:
        count: how many ids `send` needs.
    """
    ids = [deps.job_ids.new(caller.id) for _ in range(count)]
    key = request.headers.get("idempotency-key")
    if key is None:
        return *await send(ids), {}
    url = request.url
    identity = (url.path.encode(), url.query.encode(), body)
    keyed = await deps.idempotency_keys.start(caller.id, key, identity, ids)
    if keyed.answer is not None:
        return *keyed.answer, {"Idempotency-Replayed": "true"}
    try:
        status, answer = await send(keyed.job_ids)
    except (InvalidJob, DuplicateJob, QueueFull):
        await deps.idempotency_keys.release(keyed)
        raise
    except Exception:
        await deps.idempotency_keys.abort(keyed)
        raise
    await deps.idempotency_keys.complete(keyed, status, answer)
    return status, answer, {}


def _item_answer(sent: AsyncJobHandle | PenstockError | Problem, deps: Deps, most_errors: int) -> ItemAnswer:
    if isinstance(sent, AsyncJobHandle):
        deps.metrics.sent(sent.kind).inc()
        return ItemAnswer(status=202 if sent.created else 200, job=Accepted(**_accepted(sent)))
    problem = sent if isinstance(sent, Problem) else problem_of(sent)
    deps.metrics.refused.labels(problem.name).inc()
    return ItemAnswer(status=problem.status_code, problem=problem.body(most_errors))


def _accepted(handle: AsyncJobHandle) -> dict[str, Any]:
    return {"id": handle.id, "kind": handle.kind, "queue": handle.queue, "created": handle.created}
