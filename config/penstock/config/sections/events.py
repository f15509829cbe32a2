"""`[events.NAME]`: the jobs that events become. `[webhooks.NAME]`: senders of incoming webhooks. `[hooks.NAME]`:
receivers of outgoing webhooks, which report the ends of jobs."""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, IPvAnyNetwork

from penstock.config.errors import ConfigError
from penstock.config.sections.tenants import Tenants, includes
from penstock.config.sections.values import HttpUrl

_REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def _tuple(value: object) -> object:
    return (value,) if isinstance(value, str) else value


OneOrMany = Annotated[tuple[str, ...], BeforeValidator(_tuple)]


class EventRule(BaseModel):
    """Matching events become a job of this kind. Several rules may match one event; each makes its own job.

    Patterns are as in a shell, `com.example.order.*`; case-sensitive; of several, one must match.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: OneOrMany = Field(min_length=1)
    source: OneOrMany = ("*",)
    subject: OneOrMany = ("*",)
    """An event without a subject has an empty one."""
    kind: str
    fields: dict[str, str] | None = None
    """Field of the job → path of its value in the event, such as `data.order.id` or `subject`; missing and null values
    are left out. None: the fields are the members of the event's data."""
    values: dict[str, Any] = Field(default_factory=dict)
    """Fields with a fixed value."""


class WebhookSettings(BaseModel):
    """`[webhooks.NAME]`: a sender of incoming webhooks (`POST /v1/webhooks/NAME`), which become events."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    scheme: Literal["standard", "github", "stripe", "bearer"]
    """How the sender proves its identity: Standard Webhooks, `X-Hub-Signature-256`, `Stripe-Signature`, or a secret in
    the header `Authorization: Bearer …`."""
    secret: OneOrMany = Field(min_length=1, repr=False)
    """Any of several is accepted, so that one can be replaced. `${NAME}` is that environment variable."""
    tolerance_seconds: float = Field(default=300.0, gt=0, le=86_400)
    """Maximum age of a signature that has a timestamp, and allowed difference of the clocks."""
    tenant: str | None = Field(default=None, min_length=1, max_length=255)
    """Tenant of its jobs."""

    def secrets(self, name: str) -> list[str]:
        """Raises ConfigError: an environment variable is not set, a secret is empty, or not as the scheme requires."""
        where = f"webhooks.{name}.secret"
        filled = _filled(self.secret, where)
        return _with_keys(filled, where) if self.scheme == "standard" else filled


class OutgoingWebhookSettings(BaseModel):
    """`[hooks.NAME]`: a receiver of outgoing webhooks (Standard Webhooks), which report the ends of jobs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: HttpUrl | None = None
    """None: no job is reported by itself; each `webhook.deliver` job has its own `url`."""
    secret: OneOrMany = Field(min_length=1, repr=False)
    """Base64, with or without `whsec_` before it; with several the webhook has as many signatures. `${NAME}` is that
    environment variable of the worker."""
    tenants: Tenants | None = None
    """Only the ends of these tenants' jobs are reported, and only their `webhook.deliver` jobs are sent. None: those of
    all jobs."""
    kinds: OneOrMany = ("*",)
    """Patterns, as in `[events.NAME]`."""
    states: tuple[Literal["succeeded", "discarded", "cancelled", "dead"], ...] = (
        "succeeded",
        "discarded",
        "cancelled",
        "dead",
    )
    include: tuple[Literal["result", "error"], ...] = ()
    """Additional parts of a job to send. Both may contain confidential data."""
    allow_networks: tuple[IPvAnyNetwork, ...] = ()
    """Addresses that are not public are refused unless they are in one of these, such as `10.1.0.0/16`."""
    timeout_seconds: float = Field(default=15.0, gt=0, le=50)

    def is_for(self, tenant: str | None) -> bool:
        """Whether it hears of the jobs of this tenant; None: of jobs without one."""
        return self.tenants is None or (tenant is not None and includes(self.tenants, tenant))

    def secrets(self, name: str) -> list[str]:
        """Raises ConfigError: an environment variable is not set, or a secret is empty or not base64."""
        where = f"hooks.{name}.secret"
        return _with_keys(_filled(self.secret, where), where)


def signing_key(secret: str) -> bytes:
    """The key of a secret of Standard Webhooks: base64, with or without `whsec_` before it, as its libraries read it.

    Raises:
        ValueError: it is not base64, or is empty.
    """
    text = secret.removeprefix("whsec_")
    try:
        key = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except binascii.Error as error:
        raise ValueError(f"not base64: {error}") from None
    if not key:
        raise ValueError("empty, so anyone could sign with it")
    return key


def _with_keys(secrets: list[str], where: str) -> list[str]:
    for secret in secrets:
        try:
            signing_key(secret)
        except ValueError as error:
            raise ConfigError(
                f"{where}: {error}; a secret of Standard Webhooks is base64, with or without whsec_ before it (a text "
                "that was the key itself is now written as whsec_ and the base64 of that text)"
            ) from None
    return secrets


def _filled(secrets: Sequence[str], where: str) -> list[str]:
    def environment_value(match: re.Match[str]) -> str:
        if (value := os.environ.get(match[1])) is None:
            raise ConfigError(f"{where}: the environment variable {match[1]} is not set")
        return value.strip()  # files that secrets are read from often end with a line break

    filled = [_REFERENCE.sub(environment_value, secret) for secret in secrets]
    if not all(filled):
        raise ConfigError(f"{where}: is empty, so anyone could sign with it")
    return filled
