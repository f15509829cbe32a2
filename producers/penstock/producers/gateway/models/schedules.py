"""Schedules as clients write and see them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, WithJsonSchema

from penstock.config.sections.schedules import Duration, ScheduleSettings
from penstock.ledger.schedules.overview import status_fields
from penstock.ledger.schedules.rules import Schedule
from penstock.producers.gateway.requests.options import check_reachable
from penstock.schemas.jobs.kind import NAME
from penstock.schemas.states import State


def _duration(value: object) -> object:
    if not isinstance(value, str) or len(value) > 100:
        raise ValueError('write "30s", "15m", "2h", "1d" or "1w"')
    return value


def _time(value: object) -> datetime:
    try:
        time = datetime.fromisoformat(value if isinstance(value, str) else "")
    except ValueError:
        raise ValueError("write 2026-03-01, 2026-03-01T09:00 or with +01:00") from None
    check_reachable(time if time.tzinfo else time.replace(tzinfo=UTC))
    return time


Span = Annotated[
    Duration,
    BeforeValidator(_duration),
    WithJsonSchema({"type": "string", "maxLength": 100, "description": "`30s`, `15m`, `2h`, `1d`, `1w`, or ISO 8601."}),
]
Time = Annotated[
    datetime,
    BeforeValidator(_time),
    WithJsonSchema(
        {"type": "string", "description": "ISO 8601; without an offset as the clock of the schedule's zone shows it."}
    ),
]
Text = Annotated[str, Field(max_length=255)]


class NewSchedule(ScheduleSettings):
    """A schedule to be made: the keys of `[schedules.NAME]` in penstock.toml. One of cron, every and at says when."""

    name: str = Field(max_length=127, pattern=f"^{NAME.pattern}$")
    kind: str = Field(max_length=127, description="Of the jobs it makes.")
    cron: Text | None = None
    every: Span | None = None
    anchor: Time | None = None
    at: Time | None = None
    times: Text | None = Field(default=None, description="Name of times that an application's code computes.")
    start: Time | None = None
    until: Time | None = None
    timezone: Text = "UTC"
    calendar: Text | None = None
    payload: dict[str, Any] = Field(
        default_factory=dict, description="The job's fields, as the schema of its kind says."
    )
    time_field: Text | None = None
    catch_up: Span | None = None
    jitter: Span = timedelta()
    queue: Text | None = None
    expires_in: Span | None = None

    def values_given(self) -> dict[str, Any]:
        """The keys that the request sets, as the file would have them."""
        values = self.model_dump(mode="json", exclude={"name"}, exclude_unset=True)
        return {key: value for key, value in values.items() if value is not None}


class ScheduleView(BaseModel):
    """A schedule as the ledger has it: what fires."""

    name: str
    kind: str | None
    when: Annotated[str | None, Field(description="Its rule, in a few words.")]
    source: Annotated[Literal["file", "code", "made"], Field(description="`made`: at run time.")]
    state: Annotated[Literal["active", "paused", "over", "wrong"], Field(description="`over`: it has no time to come.")]
    next_at: datetime | None
    last_at: datetime | None
    last_job_id: str | None
    waiting_at: Annotated[datetime | None, Field(description="The time whose job waits for the last one to end.")]
    paused_at: datetime | None
    error: Annotated[str | None, Field(description="Why it does not fire.")]
    settings: Annotated[
        dict[str, Any], Field(description="What it was made of; the payload without what is sensitive.")
    ]


class ScheduleList(BaseModel):
    schedules: list[ScheduleView]


class TimeView(BaseModel):
    at: Annotated[str, Field(description="As the clock of the schedule's zone shows it.")]
    utc: datetime
    clock: Annotated[str | None, Field(description="What that clock has done since the time before.")]


class TimeList(BaseModel):
    times: list[TimeView]


class RunView(BaseModel):
    """A time of a schedule, and the state of its job."""

    fire_at: datetime
    cause: Annotated[str, Field(description="`time`; or `run` or `backfill`, by a person.")]
    fired_at: datetime
    skipped: Annotated[str | None, Field(description="Why no job was made.")]
    job_id: str | None
    state: Annotated[State | None, Field(description="The job's; None where the ledger has it no more.")]
    started_at: datetime | None
    finished_at: datetime | None


class RunList(BaseModel):
    runs: list[RunView]


class MadeJob(BaseModel):
    job_id: Annotated[str, Field(description="Of a unique kind whose key is held, that of the job that holds it.")]


class Backfill(BaseModel):
    """The times that are to have a job."""

    model_config = ConfigDict(extra="forbid")

    begin: Time = Field(alias="from")
    end: Annotated[Time | None, Field(description="Exclusive; now if not given.")] = Field(default=None, alias="to")
    dry_run: StrictBool = Field(default=False, description="Say which times would make a job, and make none.")


class BackfilledTime(BaseModel):
    at: datetime
    job_id: str | None
    skipped: Annotated[str | None, Field(description="Why none was made: `fired` or `unique`.")]


class BackfillAnswer(BaseModel):
    job_count: int = Field(alias="made", description="How many jobs; with `dry_run` how many there would be.")
    times: list[BackfilledTime]


def view(schedule: Schedule, row: Any) -> ScheduleView:
    """A schedule as clients see it, of its row in the ledger."""
    settings = schedule.settings
    error = schedule.error
    if error is None and row.error is not None:  # the message contains paths on the dispatcher's host
        error = f"the dispatcher refuses it; see: penstock schedules show {schedule.name}"
    values = {} if settings is None else settings.model_dump(mode="json", exclude_defaults=True, exclude={"payload"})
    # Fields can be hidden only for a kind that is registered here. `time_field` holds a sample value.
    if settings is not None and schedule.job is not None:
        payload = schedule.job.redacted()
        payload.pop(settings.time_field or "", None)
        values["payload"] = payload
    return ScheduleView(
        name=schedule.name,
        kind=settings and settings.kind,
        when=settings and settings.when,
        settings=values,
        **status_fields(schedule, row, error),
    )
