"""Tokens of an identity provider (JWT), checked with the keys it publishes (JWKS)."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import jwt

from penstock.config.sections.gateway import JwtSettings
from penstock.producers.gateway.problems import Problem

log = logging.getLogger("penstock.gateway")

_TIMEOUT_SECONDS = 5.0


class JwtVerifier:
    """Checks tokens. The provider's keys are kept for five minutes, and fetched again for an unknown one."""

    def __init__(self, settings: JwtSettings) -> None:
        self._settings, self.claim = settings, settings.claim
        self._keys = jwt.PyJWKClient(settings.jwks_url, timeout=_TIMEOUT_SECONDS)

    async def verify(self, token: str) -> dict[str, Any]:
        """The claims of a token.

        Raises:
            Problem: (401) it is forged, expired, or for another audience; (503) the provider's keys cannot be fetched.
        """
        try:
            return await asyncio.to_thread(self._decode, token)
        except jwt.PyJWKClientConnectionError as error:
            log.warning("the keys at %s cannot be fetched: %s", self._settings.jwks_url, error)
            detail = "the identity provider's keys cannot be fetched; try again later"
            raise Problem(503, "provider-unavailable", detail, headers={"Retry-After": "5"}) from error
        except jwt.PyJWTError as error:
            raise Problem(401, "invalid-token", f"the token is refused: {error}", headers=CHALLENGE) from error

    def _decode(self, token: str) -> dict[str, Any]:
        settings = self._settings
        key = self._keys.get_signing_key_from_jwt(token)
        return jwt.decode(
            token,
            key,
            algorithms=list(settings.algorithms),
            audience=settings.audience,
            issuer=settings.issuer,
            leeway=settings.leeway_seconds,
            options={"require": ["exp", "iss", "aud", "sub"]},
        )


CHALLENGE = {"WWW-Authenticate": "Bearer"}
