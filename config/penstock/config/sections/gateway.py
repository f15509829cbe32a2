"""`[gateway]`: the HTTP door for what is not Python, or not on this network."""

from __future__ import annotations

from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator

_ALGORITHMS = {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
"""Of key pairs. With a shared secret, whoever checks tokens could make them too."""


class JwtSettings(BaseModel):
    """`[gateway.jwt]`: tokens of an identity provider that are taken beside API keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    jwks_url: str
    """Where the provider publishes its keys."""
    issuer: str
    audience: str
    algorithms: tuple[str, ...] = ("RS256", "ES256", "EdDSA")
    claim: str = "penstock"
    """The claim that says what a token may do: an object with any of `kinds`, `queues` and `tenants`, lists of names.
    A token without it is refused."""
    leeway_seconds: float = Field(default=10.0, ge=0, le=300)
    """By how much the provider's clock and ours may differ."""

    @field_validator("jwks_url")
    @classmethod
    def _http(cls, value: str) -> str:
        if urlsplit(value).scheme not in ("http", "https") or not urlsplit(value).hostname:
            raise ValueError(f"{value!r} is no http:// or https:// URL")
        return value

    @field_validator("algorithms")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or (unknown := set(value) - _ALGORITHMS):
            raise ValueError(f"{', '.join(sorted(unknown)) if value else 'none'}: use {', '.join(sorted(_ALGORITHMS))}")
        return value


class GatewaySettings(BaseModel):
    """What the gateway takes from whom, and how much of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_body_bytes: int = Field(default=1024 * 1024, ge=1024)
    """Of a request; a single job is held to `max_payload_bytes` beside it."""
    max_batch: int = Field(default=1000, ge=1, le=10_000)
    """Jobs in one request."""
    body_timeout_seconds: float = Field(default=30.0, gt=0)
    """How long a request's body may take to arrive."""
    requests_per_second: float | None = Field(default=None, gt=0)
    """Of each caller whose key does not say; None: as many as it likes. Each gateway process counts for itself."""
    max_streams: int = Field(default=1000, ge=1)
    """Jobs that clients follow at a time, in one process."""
    cors_origins: tuple[str, ...] = ()
    """Web pages of which other origins may call the gateway, such as `https://app.example.com`; none if not said."""
    jwt: JwtSettings | None = None

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            parts = urlsplit(origin)
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.path or parts.query:
                raise ValueError(f"{origin!r} is no origin; write it as https://app.example.com, without a path")
        return value
