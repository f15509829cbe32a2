"""Dead letters as clients choose, see and decide about them."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, TypeAdapter, model_validator
from pydantic.json_schema import WithJsonSchema

from penstock.config.sections.schedules import Duration
from penstock.ledger.queries.dead_letters import Selection
from penstock.ledger.queries.scope import Scope
from penstock.producers.gateway.requests.options import Label, check_reachable

_DURATION: TypeAdapter[Any] = TypeAdapter(Duration)
_RATE = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*/\s*([smh])")
_PER = {"s": 1.0, "m": 60.0, "h": 3600.0}


def _past(value: object) -> datetime:
    try:
        text = value if isinstance(value, str) and len(value) <= 100 else ""
        time = datetime.fromisoformat(text) if "-" in text else datetime.now(UTC) - _DURATION.validate_python(text)
    except (ValueError, OverflowError):
        raise ValueError("write how long ago, as 1h or 2d, or a time, as 2026-03-01T09:00+01:00") from None
    if time.tzinfo is None:
        raise ValueError("the time has no offset; add one, such as +01:00, or Z for UTC")
    return check_reachable(time)


def _per_second(value: object) -> float:
    match = _RATE.fullmatch(value.strip()) if isinstance(value, str) else None
    rate = 0.0 if match is None else float(match[1]) / _PER[match[2]]
    if not 0 < rate <= 1_000_000:
        raise ValueError("write 50/s, 600/m or 1000/h")
    return rate


def _text(description: str) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "maxLength": 100, "description": description})


Past = Annotated[datetime, BeforeValidator(_past), _text("How long ago, `1h`, `2d`; or ISO 8601 with an offset.")]
Throttle = Annotated[float, BeforeValidator(_per_second), _text("How many become due: `50/s`, `600/m`, `1000/h`.")]
DeadLetterId = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]+$")]


class Filter(BaseModel):
    """Dead letters to which all of this applies."""

    model_config = ConfigDict(extra="forbid")

    reason: Annotated[Label | None, Field(description="Why they are dead, such as `failed` or `unknown_kind`.")] = None
    kind: Label | None = None
    queue: Label | None = None
    group: Annotated[Label | None, Field(description="A fingerprint, as `GET /v1/deadletters/groups` has it.")] = None
    key: Annotated[Label | None, Field(description="The key of their jobs.")] = None
    tenant: Annotated[Label | None, Field(description="The tenant of their jobs.")] = None
    since: Annotated[Past | None, Field(description="Dead since then.")] = None
    until: Annotated[Past | None, Field(description="Dead before then.")] = None
    error: Annotated[Label | None, Field(description="Text that their error contains, in any case.")] = None

    def selection(self, scope: Scope) -> Selection:
        return Selection(**{name: getattr(self, name) for name in Filter.model_fields}, scope=scope)


class GroupQuery(Filter):
    decided: Annotated[
        Literal["replayed", "discarded"] | None,
        Field(description="Those that were replayed, or discarded, instead of those that wait for a decision."),
    ] = None
    limit: Annotated[int, Field(ge=1, le=1000)] = 50

    def selection(self, scope: Scope) -> Selection:
        return Selection(**{name: getattr(self, name) for name in (*Filter.model_fields, "decided")}, scope=scope)


class ListQuery(GroupQuery):
    before: Annotated[DeadLetterId | None, Field(description="Go on after the one with this id.")] = None


class DeadLetterSummary(BaseModel):
    """A dead letter among others."""

    id: Annotated[str, Field(description="The id of its job.")]
    kind: str | None
    queue: str
    reason: str
    detail: Annotated[str, Field(description="The error.")]
    fingerprint: Annotated[str, Field(description="The same for all of its group.")]
    key: Annotated[str | None, Field(description="Of its job, as is the tenant.")]
    tenant: str | None
    unread: Annotated[bool, Field(description="Whether its message never became a job.")]
    created_at: datetime
    replayed_at: datetime | None
    discarded_at: datetime | None


class DeadLetterList(BaseModel):
    dead_letters: list[DeadLetterSummary]


class AttemptView(BaseModel):
    number: int
    outcome: str
    started_at: datetime | None
    finished_at: datetime | None
    error: str | None


class DeadLetterView(DeadLetterSummary):
    """A dead letter with its payload and attempts."""

    payload: Annotated[
        dict[str, Any],
        Field(description="Without what is sensitive; of a kind that the gateway does not know all values are hidden."),
    ]
    attempts: list[AttemptView]


class GroupView(BaseModel):
    """Dead letters that died of the same error. Kind, reason and error are those of the newest."""

    fingerprint: Annotated[str, Field(description="Its name, for `group`.")]
    count: int
    kind: str | None
    reason: str
    error: str
    first_at: datetime
    last_at: datetime
    newest_id: str


class GroupList(BaseModel):
    groups: list[GroupView]


class Choice(BaseModel):
    """The dead letters to decide about: exactly one of `ids`, `filter` and `all`."""

    model_config = ConfigDict(extra="forbid")

    ids: Annotated[list[DeadLetterId] | None, Field(min_length=1, description="These.")] = None
    filter: Annotated[Filter | None, Field(description="Those that wait for a decision and match all of this.")] = None
    everything: Annotated[StrictBool, Field(alias="all", description="All that wait for a decision.")] = False
    limit: Annotated[int | None, Field(ge=1, description="How many at most, the oldest first.")] = None
    dry_run: Annotated[StrictBool, Field(description="Return what would happen to each, and change nothing.")] = False

    @model_validator(mode="after")
    def _check_chosen(self) -> Choice:
        filtered = self.filter is not None and bool(self.filter.selection(Scope()).filters)
        if (self.ids is not None) + filtered + self.everything != 1:
            raise ValueError("give the ids of dead letters, or a filter with what chooses them, such as group, or all")
        return self

    def selection(self, scope: Scope) -> Selection:
        if self.filter is not None and self.ids is None:
            return self.filter.selection(scope)
        return Selection(ids=None if self.ids is None else tuple(self.ids), scope=scope)


class Replay(Choice):
    """Dead letters to be tried again."""

    edit: Annotated[
        dict[str, Any] | None,
        Field(min_length=1, description="Fields to set in the payload; of one id, or of the filter's group."),
    ] = None
    throttle: Throttle | None = None


class Discard(Choice):
    """Dead letters to be closed: nothing is to be done about them."""

    reason: Annotated[str, Field(max_length=1000, pattern=r"\S", description="Why, for the audit log.")]


class Decided(BaseModel):
    """The result for one dead letter."""

    id: str
    kind: str | None = None
    queue: str | None = None
    problem: Annotated[dict[str, Any] | None, Field(description="Why nothing was done.")] = None


class Replayed(Decided):
    due_at: Annotated[datetime | None, Field(description="When its job is due.")] = None


class ReplayAnswer(BaseModel):
    """The result for each, the oldest first, or in the order of the ids. With `dry_run` what it would be."""

    dry_run: bool
    replayed: int
    refused: int
    dead_letters: list[Replayed]


class DiscardAnswer(BaseModel):
    """The result for each, the oldest first, or in the order of the ids. With `dry_run` what it would be."""

    dry_run: bool
    discarded: int
    refused: int
    dead_letters: list[Decided]
