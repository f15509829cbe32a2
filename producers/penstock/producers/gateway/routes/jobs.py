"""A job over HTTP: its status, cancelling it, trying it again."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request
from pydantic import BaseModel, Field

from penstock.config.errors import InvalidState, StorageError
from penstock.ledger.queries.status import JobStatus
from penstock.ledger.transitions.cancel import request_cancel
from penstock.ledger.transitions.replay import retry
from penstock.producers.gateway.auth.callers import Caller
from penstock.producers.gateway.dependencies import Authenticated, Deps, Here, authenticated
from penstock.producers.gateway.problems import job_not_found
from penstock.schemas.states import State
from penstock.schemas.verbs import Verb
from penstock.schemas.wire.ids import made_at

router = APIRouter(tags=["jobs"])

JobId = Annotated[str, Path(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]+$", description="The job's id.")]


Token = Annotated[
    str | None, Query(max_length=1024, description="A web backend's token for this job, in place of a key.")
]


class ProgressView(BaseModel):
    done: int
    total: int | None = None
    note: str | None = None


class JobView(BaseModel):
    """A job as the ledger has it."""

    id: str
    kind: Annotated[str | None, Field(description="None until a worker has seen it, as is the queue.")] = None
    queue: str | None = None
    state: State
    attempt: Annotated[int, Field(description="Number of the last one that started; 0 before the first.")] = 0
    failures: int = 0
    crashes: int = 0
    key: str | None = None
    tenant: str | None = None
    enqueued_at: datetime | None = None
    due_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    error: Annotated[str | None, Field(description="Of the last failed attempt, in a line.")] = None
    progress: ProgressView | None = None
    result: Annotated[Any, Field(description="What its handler returned, once it has succeeded.")] = None
    result_error: Annotated[str | None, Field(description="Why its result cannot be shown.")] = None


class StateView(BaseModel):
    id: str
    state: State


@router.get("/v1/jobs/{id}", operation_id="getJob")
async def get_job(id: JobId, caller: Authenticated, deps: Here) -> JobView:
    """The job's status. Before a worker has seen it, only who sent it finds it, as `queued`."""
    return view(await visible(deps, caller, id))


async def _canceller(request: Request, id: JobId, deps: Here, token: Token = None) -> Caller:
    """Raises Problem or InvalidToken: see `authenticated` and `Deps.check_token`."""
    if token is None:
        return await authenticated(request)
    caller = deps.check_token(token, id, Verb.CANCEL)
    deps.count(caller)
    return caller


@router.post("/v1/jobs/{id}/cancel", operation_id="cancelJob")
async def cancel_job(
    id: JobId,
    caller: Annotated[Caller, Depends(_canceller)],
    deps: Here,
    kind: Annotated[
        str | None, Query(max_length=127, description="Its kind, needed while no worker has seen the job.")
    ] = None,
    tenant: Annotated[
        str | None, Query(max_length=255, description="Likewise its tenant, with a key that is for several.")
    ] = None,
) -> StateView:
    """Cancel the job: at once while it waits, through its worker while it runs (its state is `running` then).

    With a token, once a worker has seen it.
    """
    status = await visible(deps, caller, id)
    seen = status.enqueued_at is not None
    if not seen and kind is None:
        raise InvalidState(f"job {id} waits in the broker, where no worker has seen it; name its kind")
    unseen: dict[str, Any] = (
        {} if seen else {"kind": caller.find_kind(kind or "").name, "tenant": caller.tenant(tenant)}
    )
    state = await asyncio.to_thread(request_cancel, deps.database, id, actor=caller.name, **unseen)
    return StateView(id=id, state=state)


@router.post("/v1/jobs/{id}/retry", operation_id="retryJob")
async def retry_job(id: JobId, caller: Authenticated, deps: Here) -> StateView:
    """Try a job again, now, that is dead, discarded or cancelled. One whose message no one can read yet is refused."""
    status = await visible(deps, caller, id)
    if status.enqueued_at is None:
        raise InvalidState(f"job {id} has not ended")
    await asyncio.to_thread(retry, deps.database, id, actor=caller.name, scope=caller.scope)
    return StateView(id=id, state=State.SCHEDULED)


async def visible(deps: Deps, caller: Caller, job_id: str) -> JobStatus:
    """The status of a job that this caller may see.

    Raises:
        Problem: (404) there is none, or it is not for this caller. LedgerUnavailable.
    """
    status = await deps.producer.handle(job_id).status()
    if status.enqueued_at is None:  # not on record
        if not is_sender(deps, caller, job_id):
            raise job_not_found()
    elif not caller.may_see(status.kind, status.queue, status.tenant):
        raise job_not_found()
    return status


def is_sender(deps: Deps, caller: Caller, job_id: str) -> bool:
    """Whether the caller has sent this job, by its id alone, and the ledger cannot have pruned it yet."""
    return deps.job_ids.made_for(job_id, caller.id) and not _is_over(deps, job_id)


def view(status: JobStatus) -> JobView:
    """The status as clients see it. A result that cannot be read does not hide the rest."""
    fields: dict[str, Any] = {name: getattr(status, name) for name in _SHOWN}
    if status.progress is not None:
        progress = status.progress
        fields["progress"] = ProgressView(done=progress.done, total=progress.total, note=progress.note)
    try:
        fields["result"] = status.result
    except StorageError:
        fields["result_error"] = "it is in the storage, and cannot be read now or any more"
    return JobView(**{name: value if value != "" else None for name, value in fields.items()})


_SHOWN = tuple(name for name in JobView.model_fields if name not in ("result", "result_error", "progress"))


def _is_over(deps: Deps, job_id: str) -> bool:
    """Whether a job that is not on record may have been pruned: it is older than the shortest retention."""
    created_at, retention = made_at(job_id), deps.settings.retention
    kept = [period for period in (retention.succeeded, retention.discarded, retention.cancelled) if period is not None]
    return created_at is not None and bool(kept) and created_at < datetime.now(UTC) - min(kept)
