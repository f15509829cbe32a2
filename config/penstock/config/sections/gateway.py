"""`[gateway]`: jobs over HTTP, for clients that are not Python or not on this network."""

from __future__ import annotations

from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator

from penstock.config.sections.values import is_http

_ALGORITHMS = {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
"""Algorithms with key pairs. With a shared secret, everyone who checks tokens could also make them."""


class JwtSettings(BaseModel):
    """`[gateway.jwt]`: tokens of an identity provider, accepted in addition to API keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    jwks_url: str
    """URL of the provider's keys."""
    issuer: str
    audience: str
    algorithms: tuple[str, ...] = ("RS256", "ES256", "EdDSA")
    claim: str = "penstock"
    """The claim that says what a token may do: an object with any of `verbs`, `kinds`, `queues` and `tenants`, lists of
    names. A token without it is refused."""
    leeway_seconds: float = Field(default=10.0, ge=0, le=300)
    """Allowed difference between the provider's clock and ours."""

    @field_validator("jwks_url")
    @classmethod
    def _http(cls, value: str) -> str:
        if not is_http(urlsplit(value)):
            raise ValueError(f"{value!r} is not an http:// or https:// URL")
        return value

    @field_validator("algorithms")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or (unknown := set(value) - _ALGORITHMS):
            raise ValueError(f"{', '.join(sorted(unknown)) if value else 'none'}: use {', '.join(sorted(_ALGORITHMS))}")
        return value


class GatewaySettings(BaseModel):
    """`[gateway]`: limits of the gateway, and the callers that it accepts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_body_bytes: int = Field(default=1024 * 1024, ge=1024)
    """Limit of a request; each job is also limited by `max_payload_bytes`."""
    max_batch: int = Field(default=1000, ge=1, le=10_000)
    """Jobs in one request."""
    body_timeout_seconds: float = Field(default=30.0, gt=0)
    """Time limit for a request's body to arrive."""
    requests_per_second: float = Field(default=1000.0, gt=0)
    """Limit of each caller whose key has no rate; `inf`: no limit. A batch counts as many as it has jobs. Each gateway
    process counts for itself."""
    max_connections: int = Field(default=2000, ge=1)
    """Connections of one process. Where a new one is too many, the one that has been idle for longest is closed."""
    max_streams: int = Field(default=1000, ge=1)
    """Jobs that clients follow at a time, in one process."""
    max_streams_per_caller: int = Field(default=100, ge=1)
    """Jobs that one caller follows at a time; with tokens of web backends, how many follow one job."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose web pages may call the gateway, such as `https://app.example.com`; none by default."""
    jwt: JwtSettings | None = None

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            parts = urlsplit(origin)
            if not is_http(parts) or parts.path or parts.query:
                raise ValueError(f"{origin!r} is not an origin; write it as https://app.example.com, without a path")
        return value
