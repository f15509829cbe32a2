"""`[limits.NAME]`: limits over several kinds or whole queues."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


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
