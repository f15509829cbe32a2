"""Options of a job in addition to its fields: those of `Producer.enqueue`, as clients write them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, cast

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request

from penstock.producers.gateway.problems import wrong_parameters
from penstock.schemas.jobs.kind import NAME, Priority
from penstock.schemas.jobs.unique_policy import UniquePolicy
from penstock.schemas.wire.tags import LONGEST_TAG, MOST_TAGS, check_tags

_LONGEST = 100 * 365 * 86_400.0
_CLEAN = r"^[^\x00-\x1f\x7f]+$"


def check_reachable(time: datetime) -> datetime:
    """The time, if clocks and databases will reach it. Raises ValueError."""
    if not datetime(1970, 1, 2, tzinfo=UTC) <= time <= datetime.now(UTC) + timedelta(seconds=_LONGEST):
        raise ValueError("it must lie between 1970 and a hundred years from now")
    return time


Seconds = Annotated[float, Field(ge=0, le=_LONGEST, allow_inf_nan=False)]
MoreSeconds = Annotated[float, Field(gt=0, le=_LONGEST, allow_inf_nan=False)]
Tag = Annotated[str, Field(min_length=1, max_length=LONGEST_TAG, pattern=_CLEAN)]
Label = Annotated[str, Field(min_length=1, max_length=255, pattern=_CLEAN)]


class Options(BaseModel):
    """See `Producer.enqueue`. Durations are in seconds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    delay: Annotated[Seconds | None, Field(description="Run it no sooner than this many seconds from now.")] = None
    run_at: Annotated[
        Annotated[AwareDatetime, AfterValidator(check_reachable)] | None,
        Field(description="Or no sooner than this time: ISO 8601 with an offset."),
    ] = None
    priority: Annotated[Priority | None, Field(description="The lane; as its kind says if not given.")] = None
    key: Annotated[Label | None, Field(description="What it is about, to find it by.")] = None
    tenant: Annotated[
        Label | None, Field(description="On whose behalf; may be left out with a key that is for one tenant.")
    ] = None
    expires_in: Annotated[MoreSeconds | None, Field(description="Discard it if it has not run by then.")] = None
    queue: Annotated[
        Annotated[str, Field(pattern=f"^{NAME.pattern}$")] | None, Field(description="Another queue than its kind's.")
    ] = None
    unique: Annotated[UniquePolicy | None, Field(description="What becomes of it if another job holds its key.")] = None
    unique_for: Annotated[MoreSeconds | None, Field(description="How long it holds its key.")] = None
    debounce: Annotated[MoreSeconds | None, Field(description="The quiet period of that policy.")] = None
    tags: Annotated[
        Annotated[list[Tag], Field(max_length=MOST_TAGS), AfterValidator(check_tags)] | None,
        Field(description="Words to find it by in lists."),
    ] = None

    def as_enqueue_options(self) -> dict[str, Any]:
        """The options that were set, as arguments of `enqueue`."""
        set_ = self.model_fields_set & OPTIONS
        return {name: value for name in set_ if (value := getattr(self, name)) is not None}


OPTIONS = frozenset(Options.model_fields)
_NONE = Options()


def read_options(request: Request) -> Options:
    """Options in a request's query.

    Raises:
        Problem: (422) one is wrong or unknown.
    """
    if not request.scope["query_string"]:
        return _NONE
    try:
        values: dict[str, Any] = dict(request.query_params)
        if "tags" in values:
            return Options.model_validate({**values, "tags": values["tags"].split(",")})
        return Options.model_validate_strings(values)
    except ValidationError as error:
        raise wrong_parameters(error.errors(include_url=False, include_context=False, include_input=False)) from None


def parameters() -> list[dict[str, Any]]:
    """The options as OpenAPI describes query parameters."""
    described = cast(dict[str, dict[str, Any]], Options.model_json_schema()["properties"])
    described_parameters = []
    for name, schema in described.items():
        # A parameter without a value is left out; a query has no null.
        choices = [choice for choice in schema["anyOf"] if choice != {"type": "null"}]
        bare = choices[0] if len(choices) == 1 else {"anyOf": choices}
        parameter = {"name": name, "in": "query", "description": schema["description"], "schema": bare}
        if bare.get("type") == "array":
            parameter |= {"style": "form", "explode": False}  # separated by commas
        described_parameters.append(parameter)
    return described_parameters
