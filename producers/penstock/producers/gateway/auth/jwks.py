"""The keys that an identity provider publishes (JWKS, RFC 7517), fetched by one thread of their own."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import jwt

log = logging.getLogger("penstock.gateway")

FRESH_SECONDS = 300.0
"""Keys are fetched again after this time, in the background."""
STALE_SECONDS = 3600.0
"""Keys are used for so long while the provider does not answer: it must not lock out those whose key is known."""
COOLDOWN_SECONDS = 30.0
"""Unknown keys make the gateway fetch the provider's keys no more often than this, or anyone could make it do so."""
FAILED_SECONDS = 5.0
"""After a fetch that failed, others fail at once for so long."""
TIMEOUT_SECONDS = 5.0
"""For a whole fetch, however slowly the provider sends."""
_LARGEST = 1024 * 1024
"""Bytes of a provider's answer."""


class ProviderUnavailable(Exception):
    """The keys cannot be fetched now."""


class UnknownKey(Exception):
    """The key is not among those fetched a moment ago; after a rotation it may be a new one.

    Attributes:
        seconds: until it may be looked for again.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds


class ProviderKeys:
    """Keys by their ids. Callers that need a fetch share one; those whose key is known wait for none.

    Arguments:
        url: http:// or https://.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._keys: dict[str, jwt.PyJWK] = {}
        self._fetched_at = self._failed_at = -math.inf
        self._failure = ""
        self._fetching: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, "penstock identity provider")

    async def find(self, key_id: str) -> jwt.PyJWK | None:
        """The key; None: the provider has just said that it has none of this id.

        Raises:
            ProviderUnavailable: the keys cannot be fetched.
            UnknownKey: it is too soon to look for it.
        """
        began = time.monotonic()
        age = began - self._fetched_at
        if (key := self._keys.get(key_id)) is not None and age < STALE_SECONDS:
            if age > FRESH_SECONDS and not self._has_just_failed():
                self._fetch()
            return key
        if key is None and age < COOLDOWN_SECONDS:
            raise UnknownKey(COOLDOWN_SECONDS - age)
        if self._has_just_failed():
            raise ProviderUnavailable(self._failure)
        await asyncio.wait({self._fetch()})
        if self._fetched_at < began:
            raise ProviderUnavailable(self._failure)
        return self._keys.get(key_id)

    def close(self) -> None:
        """End without waiting for a fetch that is under way."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _has_just_failed(self) -> bool:
        return self._failed_at > self._fetched_at and time.monotonic() - self._failed_at < FAILED_SECONDS

    def _fetch(self) -> asyncio.Task[None]:
        if self._fetching is None or self._fetching.done():
            self._fetching = asyncio.get_running_loop().create_task(self._fetch_keys())
        return self._fetching

    async def _fetch_keys(self) -> None:
        """Never raises: those who wait look at what has come of it."""
        try:
            fetching = asyncio.get_running_loop().run_in_executor(self._thread, _fetch, self._url)
            self._keys = await asyncio.wait_for(fetching, TIMEOUT_SECONDS + 1.0)
        except Exception as error:  # whatever the provider answers
            self._failed_at, self._failure = time.monotonic(), f"{type(error).__name__}: {error}"
            log.warning("the keys at %s cannot be fetched: %s", self._url, self._failure)
        else:
            self._fetched_at = time.monotonic()


def _fetch(url: str) -> dict[str, jwt.PyJWK]:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    answer = bytearray()
    with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response:  # noqa: S310 the settings allow http:// and https:// alone
        while part := response.read1(65536):
            answer += part
            if len(answer) > _LARGEST:
                raise ValueError(f"the answer is over {_LARGEST} bytes")
            if time.monotonic() > deadline:
                raise TimeoutError(f"the answer took longer than {TIMEOUT_SECONDS:g} s")
    keys = jwt.PyJWKSet.from_dict(json.loads(answer)).keys
    if not (signing := {key.key_id: key for key in keys if key.key_id and key.public_key_use in (None, "sig")}):
        raise ValueError("none of its keys has an id and is for signatures")
    return signing
