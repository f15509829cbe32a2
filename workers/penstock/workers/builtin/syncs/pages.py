"""Pages of a sync over HTTP, and the job's outcome for each answer of the server."""

from __future__ import annotations

import asyncio
import copy
import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from penstock.config.sections.builtin.syncs import SyncSettings
from penstock.schemas.builtin.paths import find
from penstock.workers.builtin.syncs.changes import start_of_next
from penstock.workers.builtin.syncs.paging import Answer, Paging, is_url
from penstock.workers.builtin.syncs.positions import SyncPosition
from penstock.workers.builtin.syncs.verdicts import requested_wait, server_time, verdict
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
    """The next page's cursor, number or URL; None on the last."""
    served_at: datetime
    """When the server sent it, by the server's clock."""


class Pages:
    """The pages of one API. Not for several tasks at once."""

    def __init__(self, client: httpx.AsyncClient, name: str, sync: SyncSettings, deadline: datetime | None) -> None:
        import httpx

        self._client, self._name, self._sync, self._deadline = client, name, sync, deadline
        self._url = httpx.URL(sync.url)
        self._where = f"sync {name!r}: {self._url.copy_with(query=None, userinfo=b'')}"
        self._params = {key: self._filled(key, str(value)) for key, value in _spelled(sync.params).items()}
        self._headers = {key: self._filled(key, value) for key, value in sync.headers.items()}
        self._body = self._filled_body(sync.body)
        self._paging = Paging(sync, self._where)
        self._last = b""

    @property
    def style(self) -> str:
        """Style of the pages, as declared or as the answers have shown."""
        return self._paging.style

    async def fetch(self, position: SyncPosition, *, resumed: bool = False) -> Page | Retry | Snooze:
        """Fetch a page, or return how to continue later.

        A short wait that the server asks for (429, 503, or a 403 for lack of budget) is made here; a long one becomes a
        Snooze.

        Arguments:
            resumed: the cursor is from an earlier run, and may have grown too old.

        Raises:
            Permanent: another 4xx, a redirect, or an answer of another shape, or with signs of pages that the declared
                style does not lead to.
            StaleCursor: the server refuses a resumed cursor.
        """
        import httpx

        if resumed and not self._paging.fits(position.page):
            raise StaleCursor
        waits = 0
        while True:
            try:
                response, body = await self._send(position)
            except (httpx.TransportError, httpx.DecodingError) as error:
                return Retry(reason=f"{self._where}: {type(error).__name__}: {error}".rstrip(": "))
            status = response.status_code
            match verdict(status, response.headers):
                case "page":
                    # A page may have megabytes: parsing it must not hold up the other jobs of this loop.
                    return await asyncio.to_thread(self._page, response, body, position)
                case "wait":
                    delay = requested_wait(response.headers)
                    reason = f"{self._where}: HTTP {status}"
                    if delay is not None and delay > SHORT_WAIT:
                        return Snooze(min(delay, LONGEST_SNOOZE), reason=reason)
                    pause = timedelta(seconds=min(2**waits, 5)) if delay is None else delay
                    if waits == MAX_SHORT_WAITS or self._past_deadline(pause):
                        return Retry(delay, reason=f"{reason}, {waits + 1} times")
                    waits += 1
                    await asyncio.sleep(pause.total_seconds())
                case "retry":
                    return Retry(requested_wait(response.headers), reason=f"{self._where}: HTTP {status}")
                case _ if resumed and status in (400, 404, 410, 422):
                    raise StaleCursor
                case _:
                    raise Permanent(self._refusal(response, body))

    async def _send(self, position: SyncPosition) -> tuple[httpx.Response, bytes]:
        url, content = self._request(position)
        body = bytearray()
        async with self._client.stream(self._sync.method, url, headers=self._headers, json=content) as response:
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > self._sync.max_page_bytes:
                    raise Permanent(f"{self._where}: a page is over max_page_bytes ({self._sync.max_page_bytes})")
        return response, bytes(body)

    def _request(self, position: SyncPosition) -> tuple[httpx.URL, dict[str, Any] | None]:
        """URL and body of the request for a page."""
        sync, page = self._sync, position.page
        params: dict[str, str] = {}
        if sync.updated_param and position.since is not None:
            params[sync.updated_param] = start_of_next(position.since, sync.lookback, sync.updated_as)
        if sync.updated_until_param and position.until is not None:
            params[sync.updated_until_param] = position.until
        by_url = page is not None and is_url(page) and sync.pages.style in ("auto", "cursor", "url", "link")
        if not by_url:
            params |= self._paging.parameters(page)
        url = self._same_origin(page) if by_url and page is not None else self._url.copy_merge_params(self._params)
        if sync.method == "POST":
            body = copy.deepcopy(self._body)
            for path, value in params.items():
                _set(body, path, value, self._where)
            return url, body
        return (url if by_url else url.copy_merge_params(params)), None

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

    def _page(self, response: httpx.Response, body: bytes, position: SyncPosition) -> Page | Retry:
        try:
            # Decimal: a sum of money is no longer the same after a float.
            document = json.loads(body, parse_constant=_refuse, parse_float=_exact)
        except (ValueError, RecursionError):
            # With status 200, this is most often a proxy's page in front of a server that is down.
            return Retry(reason=f"{self._where}: the answer is not JSON")
        if self._sync.method == "POST" and isinstance(document, dict) and document.get("errors"):
            raise Permanent(f"{self._where}: GraphQL errors: {_excerpt(json.dumps(document['errors'], default=str))}")
        records = find(document, self._sync.items)
        if not isinstance(records, list):
            raise Permanent(f"{self._where}: no list at items = {self._sync.items!r}")
        digest = hashlib.sha256(json.dumps(records, default=str, sort_keys=True).encode()).digest() if records else b""
        if records and digest == self._last:
            raise Permanent(
                f"{self._where}: the server names a page twice: two pages have the same records; is the parameter of "
                "the page right?"
            )
        self._last = digest
        answer = Answer(document, records, response.headers, response.request.url)
        return Page(records, self._paging.next(answer, position), server_time(response.headers))

    def _filled_body(self, value: Any) -> Any:
        match value:
            case str():
                return self._filled("body", value)
            case dict():
                return {name: self._filled_body(item) for name, item in value.items()}
            case list():
                return [self._filled_body(item) for item in value]
            case _:
                return value

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
        excerpt = _excerpt(body[:500].decode("utf-8", "replace"))
        return f"{self._where}: HTTP {response.status_code}" + (f": {excerpt}" if excerpt else "")


def _spelled(params: Mapping[str, str | int | float | bool]) -> dict[str, str]:
    return {
        name: ("true" if value else "false") if isinstance(value, bool) else str(value)
        for name, value in params.items()
    }


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _excerpt(text: str) -> str:
    return " ".join(text.split())[:200]


def _exact(text: str) -> Decimal | float:
    """A number of JSON with a fraction or exponent. One that is beyond a float stays infinite, as json has it."""
    number = Decimal(text)
    return number if -400 < number.adjusted() < 400 else float(text)


def _set(body: dict[str, Any], path: str, value: str, where: str) -> None:
    """Put a parameter at a path of the body, as a whole number where it is one."""
    *folders, name = path.split(".")
    inner: Any = body
    for folder in folders:
        inner = inner.setdefault(folder, {}) if isinstance(inner, dict) else None
    if not isinstance(inner, dict):
        raise Permanent(f"{where}: the body has no object for the parameter {path!r}")
    # A declared number, such as a page or an offset, stays one; a cursor is text.
    inner[name] = int(value) if isinstance(inner.get(name), int) and value.lstrip("-").isdecimal() else value
