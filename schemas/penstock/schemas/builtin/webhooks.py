"""`webhook.deliver`: send an outgoing webhook."""

from __future__ import annotations

from datetime import timedelta

from pydantic import AwareDatetime, BaseModel, Field, JsonValue

from penstock.schemas.jobs.job import Job
from penstock.schemas.jobs.retry_policy import RetryPolicy
from penstock.schemas.jobs.sensitive import Sensitive


class DeliverWebhook(
    Job,
    kind="webhook.deliver",
    queue="webhooks",
    timeout=60,
    retry=RetryPolicy(
        max_attempts=50,
        first_delay=timedelta(seconds=5),
        factor=3,
        max_delay=timedelta(hours=8),
        max_age=timedelta(days=3),
    ),
):
    """Send one webhook, signed as Standard Webhooks says, to the receiver that `[hooks.NAME]` in penstock.toml names.
    Its id is the job's, in all attempts."""

    hook: str = Field(min_length=1, max_length=64)
    """NAME."""
    type: str = Field(min_length=1, max_length=255, pattern=r"^[A-Za-z0-9_.:-]+$")
    """Type of the event, such as `job.succeeded`."""
    occurred_at: AwareDatetime
    data: Sensitive[dict[str, JsonValue]] = Field(default_factory=dict)
    url: Sensitive[str | None] = Field(default=None, max_length=2048, pattern=r"^https?://")
    """The address, for a receiver without an address in `[hooks.NAME]`."""


class WebhookDelivered(BaseModel):
    status: int
    """As the receiver answered."""
