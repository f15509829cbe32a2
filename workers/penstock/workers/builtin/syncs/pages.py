"""Pages of a sync over HTTP, and the job's outcome for each answer of the server."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from penstock.config.sections.builtin.syncs import SyncSettings
from penstock.schemas.builtin.paths import find
from penstock.workers.builtin.syncs.tables import SyncPosition
from penstock.workers.handlers.retry_after import retry_after
from penstock.workers.handlers.returns import Permanent, Retry, Snooze

if TYPE_CHECKING:
    import httpx

SHORT_WAIT = timedelta(seconds=5)
"""Waits up to this are made in the attempt; a longer one gives the worker's place to others."""
MAX_SHORT_WAITS = 4
"""For one page."""
LONGEST_SNOOZE = timedelta(days=1)
_REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


class StaleCursor(Exception):
    """The server no longer knows a cursor that an earlier run had saved."""


@dataclass(frozen=True, slots=True)
class Page:
    records: list[Any]
    next: str | None
    """The next page's cursor or URL; None on the last."""


class Pages:
    """The pages of one API. Not for several tasks at once."""

    def __init__(self, client: httpx.AsyncClient, name: str, sync: SyncSettings, deadline: datetime | None) -> None:
        import httpx

        self._client, self._name, self._sync, self._deadline = client, name, sync, deadline
        self._url = httpx.URL(sync.url)
        self._where = f"sync {name!r}: {self._url.copy_with(query=None, userinfo=b'')}"
        self._params = {key: self._filled(key, str(value)) for key, value in _spelled(sync.params).items()}
        self._headers = {key: self._filled(key, value) for key, value in sync.headers.items()}

    async def fetch(self, position: SyncPosition, *, resumed: bool = False) -> Page | Retry | Snooze:
        """Fetch a page, or return how to continue later.

        429 and 503 are waited out here if `Retry-After` is short; a long one becomes a Snooze.

        Arguments:
            resumed: the cursor is from an earlier run, and may have grown too old.

        Raises:
            Permanent: another 4xx, a redirect, or an answer of another shape.
            StaleCursor: the server refuses a resumed cursor.
        """
        import httpx

        waits = 0
        while True:
            try:
                response, body = await self._get(position)
            except (httpx.TransportError, httpx.DecodingError) as error:
                return Retry(reason=f"{self._where}: {type(error).__name__}: {error}".rstrip(": "))
            status = response.status_code
            if status in (429, 503):
                delay = retry_after(response.headers.get("retry-after"), datetime.now(UTC))
                reason = f"{self._where}: HTTP {status}"
                if delay is not None and delay > SHORT_WAIT:
                    return Snooze(min(delay, LONGEST_SNOOZE), reason=reason)
                pause = timedelta(seconds=min(2**waits, 5)) if delay is None else delay
                if waits == MAX_SHORT_WAITS or self._past_deadline(pause):
                    return Retry(delay, reason=f"{reason}, {waits + 1} times")
                waits += 1
                await asyncio.sleep(pause.total_seconds())
            elif status == 200:
                # A page may have megabytes: parsing it must not hold up the other jobs of this loop.
                return await asyncio.to_thread(self._page, body)
            elif status >= 500:
                return Retry(reason=f"{self._where}: HTTP {status}")
            elif resumed and status in (400, 404, 410, 422):
                raise StaleCursor
            else:
                raise Permanent(self._refusal(response, body))

    async def _get(self, position: SyncPosition) -> tuple[httpx.Response, bytes]:
        params: dict[str, str] | None = dict(self._params)
        url = self._url
        if position.page is not None and position.page.startswith(("http://", "https://")):
            url, params = self._same_origin(position.page), None
        elif params is not None:
            if self._sync.updated_param and position.since is not None:
                params[self._sync.updated_param] = position.since
            if position.page is not None:
                params[self._sync.cursor_param] = position.page
            url = url.copy_merge_params(params)
        body = bytearray()
        async with self._client.stream("GET", url, headers=self._headers) as response:
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > self._sync.max_page_bytes:
                    raise Permanent(f"{self._where}: a page is over max_page_bytes ({self._sync.max_page_bytes})")
        return response, bytes(body)

    def _same_origin(self, url: str) -> httpx.URL:
        """The URL of a next page, which must be the same server's: our headers may hold secrets."""
        import httpx

        try:
            target = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise Permanent(f"{self._where}: the next page's URL is not valid: {error}") from error
        if (target.scheme, target.host, target.port) != (self._url.scheme, self._url.host, self._url.port):
            raise Permanent(f"{self._where}: the next page is at {target.host}, another server")
        return target

    def _page(self, body: bytes) -> Page | Retry:
        try:
            document = json.loads(body, parse_constant=_refuse)
        except (ValueError, RecursionError):
            # With status 200, this is most often a proxy's page in front of a server that is down.
            return Retry(reason=f"{self._where}: the answer is not JSON")
        records = find(document, self._sync.items)
        if not isinstance(records, list):
            raise Permanent(f"{self._where}: no list at items = {self._sync.items!r}")
        following = find(document, self._sync.next_cursor) if isinstance(document, dict) else None
        if isinstance(following, bool) or not isinstance(following, str | int | float | None):
            raise Permanent(f"{self._where}: no text or number at next_cursor = {self._sync.next_cursor!r}")
        return Page(records, None if following in (None, "") else str(following))

    def _filled(self, name: str, value: str) -> str:
        """The value with `${NAME}` replaced from the environment."""

        def look_up(match: re.Match[str]) -> str:
            text = os.environ.get(match[1])
            if text is None:
                raise Permanent(f"sync {self._name!r}: {name} needs the environment variable {match[1]}")
            return text.strip()  # files that secrets are read from often end with a line break

        return _REFERENCE.sub(look_up, value)

    def _past_deadline(self, pause: timedelta) -> bool:
        return self._deadline is not None and datetime.now(UTC) + pause >= self._deadline

    def _refusal(self, response: httpx.Response, body: bytes) -> str:
        if response.is_redirect:
            return f"{self._where}: HTTP {response.status_code} to another place; set `url` to it if it is right"
        excerpt = " ".join(body[:500].decode("utf-8", "replace").split())[:200]
        return f"{self._where}: HTTP {response.status_code}" + (f": {excerpt}" if excerpt else "")


def _spelled(params: Mapping[str, str | int | float | bool]) -> dict[str, str]:
    return {
        name: ("true" if value else "false") if isinstance(value, bool) else str(value)
        for name, value in params.items()
    }


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
