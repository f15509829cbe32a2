"""Schedules over HTTP: `/v1/schedules`. What the command line does with them, for callers that may send their kinds."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from pydantic import ValidationError
from pydantic_core import to_json
from starlette.responses import Response

from penstock.config.errors import ConfigError
from penstock.config.sections.schedules import read_entry
from penstock.ledger.schedules import commands
from penstock.ledger.schedules.previews import preview_times
from penstock.ledger.schedules.rules import Schedule, check_schedule, schedule_of_row
from penstock.ledger.sql.database import Database
from penstock.producers.gateway.auth.callers import Caller
from penstock.producers.gateway.dependencies import Authenticated, Deps, Here
from penstock.producers.gateway.models.schedules import (
    Backfill,
    BackfillAnswer,
    BackfilledTime,
    MadeJob,
    NewSchedule,
    RunList,
    RunView,
    ScheduleList,
    ScheduleView,
    TimeList,
    TimeView,
    view,
)
from penstock.producers.gateway.problems import Problem, invalid_body, pointer, schedule_not_found
from penstock.producers.gateway.requests.bodies import JSON, json_body, read_model
from penstock.schemas.jobs.kind import Kind, registry
from penstock.schemas.schedules.cron import localized
from penstock.schemas.verbs import Verb

router = APIRouter(tags=["schedules"])

Name = Annotated[
    str, Path(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]+$", description="The schedule's name.")
]


@router.get("/v1/schedules", operation_id="listSchedules")
async def list_schedules(caller: Authenticated, deps: Here) -> ScheduleList:
    """The schedules whose jobs this caller may send."""

    def visible_schedules() -> list[ScheduleView]:
        schedules = ((schedule_of_row(row), row) for row in commands.recorded_schedules(deps.database).values())
        return [view(schedule, row) for schedule, row in schedules if _may_see(caller, schedule)]

    return ScheduleList(schedules=await asyncio.to_thread(visible_schedules))


@router.post(
    "/v1/schedules",
    operation_id="addSchedule",
    status_code=201,
    response_model=ScheduleView,
    openapi_extra=json_body(NewSchedule.model_json_schema()),
)
async def add_schedule(request: Request, caller: Authenticated, deps: Here) -> Response:
    """Make a schedule. It fires from now on."""
    new = await read_model(request, NewSchedule, "schedule")
    try:
        kind = caller.find_kind(new.kind)
    except Problem as problem:
        if problem.status_code != 404:
            raise
        raise _wrong(pointer(["kind"]), "no kind is named that; GET /v1/kinds lists those there are") from None
    caller.check_queue(kind)
    if caller.tenants is not None:
        raise Problem(403, "tenant-not-allowed", "jobs of schedules are of no tenant, and this key is for tenants")
    schedule = await asyncio.to_thread(_add, deps.database, new, kind, caller.name)
    return Response(to_json(schedule), 201, {"Location": f"/v1/schedules/{new.name}"}, JSON)


@router.get("/v1/schedules/{name}", operation_id="getSchedule")
async def get_schedule(name: Name, caller: Authenticated, deps: Here) -> ScheduleView:
    return view(*await _visible(deps, caller, name))


@router.delete("/v1/schedules/{name}", operation_id="removeSchedule", status_code=204)
async def remove_schedule(name: Name, caller: Authenticated, deps: Here) -> None:
    """Delete a schedule that was made at run time. Its jobs stay."""
    _, row = await _visible(deps, caller, name)
    if row.source == "code":
        raise Problem(409, "wrong-state", f"schedule {name!r} is declared in code; remove it there, or pause it")
    await asyncio.to_thread(commands.remove, deps.database, name, actor=caller.name)


@router.get("/v1/schedules/{name}/next", operation_id="nextTimes")
async def next_times(
    name: Name, caller: Authenticated, deps: Here, count: Annotated[int, Query(ge=1, le=100)] = 10
) -> TimeList:
    """Its next times, paused or not."""
    schedule, _ = await _visible(deps, caller, name)
    if (times := schedule.times) is None or (settings := schedule.settings) is None:
        return TimeList(times=[])
    rows = await asyncio.to_thread(preview_times, times, settings.zone, datetime.now(UTC), count)
    return TimeList(times=[TimeView(**row) for row in rows])


@router.get("/v1/schedules/{name}/runs", operation_id="listRuns")
async def list_runs(
    name: Name, caller: Authenticated, deps: Here, limit: Annotated[int, Query(ge=1, le=1000)] = 10
) -> RunList:
    """Its last times, the newest first."""
    await _visible(deps, caller, name)
    rows = await asyncio.to_thread(commands.runs, deps.database, name, limit)
    return RunList(runs=[RunView.model_validate(row, from_attributes=True) for row in rows])


@router.post("/v1/schedules/{name}/pause", operation_id="pauseSchedule")
async def pause_schedule(name: Name, caller: Authenticated, deps: Here) -> ScheduleView:
    """Let it make no jobs until it is resumed."""
    await _visible(deps, caller, name)
    await asyncio.to_thread(commands.pause, deps.database, name, actor=caller.name)
    return await _view_after(deps, caller, name)


@router.post("/v1/schedules/{name}/resume", operation_id="resumeSchedule")
async def resume_schedule(name: Name, caller: Authenticated, deps: Here) -> ScheduleView:
    """Let it go on from now. What it would have done meanwhile is not made up for; see backfill."""
    await _visible(deps, caller, name)
    await asyncio.to_thread(commands.resume, deps.database, name, actor=caller.name)
    return await _view_after(deps, caller, name)


@router.post("/v1/schedules/{name}/run", operation_id="runSchedule", status_code=202)
async def run_schedule(name: Name, caller: Authenticated, deps: Here) -> MadeJob:
    """Make a job of it now, paused or not, whatever its last one does."""
    await _visible(deps, caller, name)
    try:
        return MadeJob(job_id=await asyncio.to_thread(commands.run, deps.database, name, actor=caller.name))
    except ConfigError as error:
        raise Problem(409, "wrong-state", str(error)) from None


@router.post(
    "/v1/schedules/{name}/backfill",
    operation_id="backfillSchedule",
    openapi_extra=json_body(Backfill.model_json_schema()),
)
async def backfill_schedule(name: Name, request: Request, caller: Authenticated, deps: Here) -> BackfillAnswer:
    """Make a job for each time in a span that has none, up to `max_batch`. They may run at the same time."""
    span = await read_model(request, Backfill, "span of time")
    schedule, _ = await _visible(deps, caller, name)
    if schedule.settings is None or schedule.error is not None:
        raise Problem(409, "wrong-state", str(schedule.error))
    zone, most = schedule.settings.zone, deps.settings.gateway.max_batch
    begin, end = localized(span.begin, zone), None if span.end is None else localized(span.end, zone)

    async def backfill(dry_run: bool) -> list[commands.BackfilledTime]:
        try:
            return await asyncio.to_thread(
                commands.backfill, deps.database, name, begin, end, actor=caller.name, limit=most, dry_run=dry_run
            )
        except ConfigError as error:
            raise _wrong(pointer(["from" if end is None else "to"]), str(error)) from None

    times = await backfill(dry_run=True)
    deps.count(caller, max(_count_jobs(times) - 1, 0))
    if not span.dry_run:
        times = await backfill(dry_run=False)
    views = [BackfilledTime(at=time.time, job_id=time.job_id, skipped=time.skipped) for time in times]
    return BackfillAnswer(made=_count_jobs(times), times=views)


def _count_jobs(times: Sequence[commands.BackfilledTime]) -> int:
    return sum(time.skipped is None for time in times)


def _add(database: Database, new: NewSchedule, kind: Kind, actor: str) -> ScheduleView:
    if new.time_field is None:  # else `check_schedule` has to fill that one first
        try:
            kind.job.model_validate_json(to_json(new.payload))
        except ValidationError as error:
            raise invalid_body(error, f"schedule of {kind.name}", under=("payload",), kind=kind) from None
    values = new.values_given()
    if (wrong := check_schedule(new.name, read_entry(values), pointer).error) is not None:
        where, _, why = wrong.partition(": ")
        raise _wrong(where, why)
    try:
        commands.add(database, new.name, values, actor=actor)
    except ConfigError as error:
        raise _wrong(pointer(["at"] if new.at is not None else []), str(error)) from None
    row = commands.find(database, new.name)
    return view(schedule_of_row(row), row)


async def _visible(deps: Deps, caller: Caller, name: str) -> tuple[Schedule, Any]:
    """A schedule that this caller may see, and its row. Raises Problem (404); LedgerUnavailable."""

    def find_schedule() -> tuple[Schedule, Any]:
        row = commands.find(deps.database, name)
        return schedule_of_row(row), row

    schedule, row = await asyncio.to_thread(find_schedule)
    if not _may_see(caller, schedule):
        raise schedule_not_found()
    return schedule, row


async def _view_after(deps: Deps, caller: Caller, name: str) -> ScheduleView:
    """A schedule after an act; its settings and error only for a caller that may read."""
    schedule = view(*await _visible(deps, caller, name))
    return schedule if caller.may(Verb.READ) else schedule.model_copy(update={"settings": {}, "error": None})


def _may_see(caller: Caller, schedule: Schedule) -> bool:
    """Whether its jobs, which are of no tenant, are for the caller. Of a kind not imported here no queue is known."""
    name = None if schedule.settings is None else schedule.settings.kind
    kind = registry.find(name or "")
    return caller.may_see(name, None, None) if kind is None else caller.may_see(kind.name, kind.queue, None)


def _wrong(where: str, why: str) -> Problem:
    errors = [{"pointer": where, "detail": why}]
    return Problem(422, "invalid-fields", "the body cannot be taken; see errors", errors=errors)
