"""Tokens of an identity provider (JWT, RFC 7519), checked with the keys that it publishes."""

from __future__ import annotations

import math
from typing import Any

import jwt

from penstock.config.sections.gateway import JwtSettings
from penstock.producers.gateway.auth.jwks import ProviderKeys, ProviderUnavailable, UnknownKey
from penstock.producers.gateway.problems import Problem

CHALLENGE = {"WWW-Authenticate": "Bearer"}


class JwtVerifier:
    """Checks tokens. The provider's keys are kept, and fetched again for an unknown one, but not within half a minute
    after the last time."""

    def __init__(self, settings: JwtSettings) -> None:
        self._settings, self.claim = settings, settings.claim
        self._keys = ProviderKeys(settings.jwks_url)

    async def verify(self, token: str) -> dict[str, Any]:
        """The claims of a token.

        Raises:
            Problem: (401) it is forged, expired, or for another audience; (503) the provider's keys cannot be fetched,
                or its key may be a new one, which is too soon to fetch.
        """
        settings = self._settings
        try:
            return jwt.decode(
                token,
                await self._key(token),
                algorithms=list(settings.algorithms),
                audience=settings.audience,
                issuer=settings.issuer,
                leeway=settings.leeway_seconds,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except ProviderUnavailable as error:
            detail = "the identity provider's keys cannot be fetched; try again later"
            raise Problem(503, "provider-unavailable", detail, headers={"Retry-After": "5"}) from error
        except UnknownKey as error:
            wait = max(math.ceil(error.seconds), 1)
            detail = f"the token's key was not among the identity provider's a moment ago; try again in {wait} s"
            raise Problem(503, "provider-unavailable", detail, headers={"Retry-After": str(wait)}) from error
        except jwt.PyJWTError as error:
            raise Problem(401, "invalid-token", f"the token is refused: {error}", headers=CHALLENGE) from error

    async def _key(self, token: str) -> jwt.PyJWK:
        header = jwt.get_unverified_header(token)
        if (algorithm := header.get("alg")) not in self._settings.algorithms:
            raise jwt.InvalidAlgorithmError(f"algorithm {algorithm} is not accepted")
        if not isinstance(header.get("kid"), str):
            raise jwt.InvalidTokenError("its header names no key (kid)")
        if (key := await self._keys.find(header["kid"])) is None:
            raise jwt.InvalidTokenError("the identity provider has no key of its header's id (kid)")
        return key

    def close(self) -> None:
        self._keys.close()
