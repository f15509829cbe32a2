"""`[kinds.NAME]`, and `[limits.NAME]` over several kinds or whole queues."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from penstock.config.sections.schedules import Duration

_Long = Annotated[Duration, Field(gt=timedelta(), le=timedelta(days=36_525))]
_Wait = Annotated[Duration, Field(ge=timedelta(), le=timedelta(days=36_525))]


class RetrySettings(BaseModel):
    """Values of a retry policy, for those that the code declares: see `penstock.schemas.RetryPolicy`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_attempts: int | None = Field(default=None, ge=1, le=2**31 - 1)
    first_delay: _Wait | None = None
    factor: float | None = Field(default=None, ge=1.0, allow_inf_nan=False)
    max_delay: _Wait | None = None
    jitter: bool | None = None
    max_age: _Long | None = None
    max_retry_after: _Wait | None = None


class KindRetrySettings(RetrySettings):
    """`retry` of `[kinds.NAME]`."""

    by_error: dict[str, RetrySettings] = Field(default_factory=dict)
    """Class of an error, by its name → values of the policy that the kind declares for it."""


class KindSettings(BaseModel):
    """`[kinds.NAME]`: options of a kind in place of those that its class declares. Each is optional."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    queue: str | None = None
    """The queue of its jobs. Producers and workers must agree: both read it from their file."""
    priority: Literal["high", "normal", "low"] | None = None
    timeout: _Long | None = None
    soft_timeout: _Long | None = None
    expires_in: _Long | None = None
    max_crashes: int | None = Field(default=None, ge=1, le=2**31 - 1)
    concurrency: int | None = Field(default=None, ge=1)
    """Jobs of the kind that run at a time, over all workers."""
    retry: KindRetrySettings | None = None


class LimitSettings(BaseModel):
    """A limit that the jobs of several kinds and queues share."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kinds: tuple[str, ...] = ()
    queues: tuple[str, ...] = ()
    """The limit applies to these kinds, and to every job of these queues."""
    concurrency: int | None = Field(default=None, ge=1)
    """Jobs that run at a time."""
    rate: int | None = Field(default=None, ge=1)
    """Jobs that begin in any `per` seconds."""
    per: float = Field(default=1.0, gt=0)
    burst: int = Field(default=1, ge=1)
    """Jobs that may begin at once after a pause."""
    by: str | None = None
    """`queue`, `tenant`, `key` or a field of the jobs, each of whose values has the limit for itself."""

    @model_validator(mode="after")
    def _of_something(self) -> Self:
        if not self.kinds and not self.queues:
            raise ValueError("name the kinds or queues that it applies to")
        if self.concurrency is None and self.rate is None:
            raise ValueError("give it concurrency, rate or both")
        if self.rate is None and self.model_fields_set & {"per", "burst"}:
            raise ValueError("per and burst go with rate")
        return self
