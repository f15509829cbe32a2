"""Styles of pages: from an answer to the next page, or the end."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from penstock.config.sections.builtin.syncs import SyncSettings
from penstock.schemas.builtin.paths import find
from penstock.workers.builtin.syncs.evidence import signs_of_more
from penstock.workers.builtin.syncs.positions import SyncPosition
from penstock.workers.handlers.returns import Permanent

if TYPE_CHECKING:
    import httpx

_SIZES = {"limit", "per_page", "perpage", "page_size", "pagesize", "size", "max_results", "maxresults", "$top", "first"}
_MISSING = object()


@dataclass(frozen=True, slots=True)
class Answer:
    """A page as the server sent it. `url` is that of its request."""

    document: Any
    records: list[Any]
    headers: httpx.Headers
    url: httpx.URL


def is_url(page: str) -> bool:
    return page.startswith(("http://", "https://"))


class Paging:
    """The style of one sync.

    Attributes:
        style: the declared style; for `auto`, the one that an answer has shown so far.
    """

    def __init__(self, sync: SyncSettings, where: str) -> None:
        self._sync, self._pages, self._where = sync, sync.pages, where
        self.style: str = sync.pages.style

    def fits(self, page: str | None) -> bool:
        """Whether a saved page is of this style, which may have been another one when it was saved."""
        return page is None or self._pages.style not in ("page", "offset") or page.isdecimal()

    def parameters(self, page: str | None) -> dict[str, str]:
        """Parameters of the request for a page that is not a URL; for the first page, those that it needs."""
        match self._pages.style:
            case "page":
                return {self._pages.parameter: page or str(self._pages.first)}
            case "offset":
                return {self._pages.parameter: page or "0"}
            case "last_id":
                return {} if page is None else {self._pages.parameter: page}
            case _:
                return {} if page is None else {self._sync.cursor_param: page}

    def next(self, answer: Answer, position: SyncPosition) -> str | None:
        """The next page: a cursor, number, id or absolute URL; None after the last one.

        Raises:
            Permanent: the answer does not fit the style, or has signs of more pages that the style does not explain.
        """
        following = self._following(answer, position)
        if self._pages.style == "auto" and self.style in ("auto", "single"):
            self.style = _detected(answer, following)
        if following is None:
            self._check_end(answer, position)
        return following

    def _following(self, answer: Answer, position: SyncPosition) -> str | None:
        style, more = self._pages.style, self._more(answer)
        if style in ("page", "offset", "last_id"):
            return self._counted(answer, position) if answer.records and more is not False else None
        if style == "single":
            return None
        if style == "link":
            return _link(answer)
        following = self._cursor(answer)
        if more is False:
            return None
        if following is None and more is True:
            raise Permanent(
                f"{self._where}: more = {self._pages.more!r} is true, and nothing is at next_cursor = "
                f"{self._sync.next_cursor!r}; correct one of them"
            )
        if following is None and style == "auto":
            return _link(answer)
        return following

    def _counted(self, answer: Answer, position: SyncPosition) -> str | None:
        page, total = position.page, self._total(answer)
        if self._pages.style == "last_id":
            last = find(answer.records[-1], self._sync.id)
            if isinstance(last, bool) or not isinstance(last, str | int):
                raise Permanent(f"{self._where}: the last record has no text or whole number at id = {self._sync.id!r}")
            return str(last)
        if self._pages.style == "page":
            number = self._pages.first if page is None else int(page)
            return None if total is not None and number - self._pages.first + 1 >= total else str(number + 1)
        reached = int(page or "0") + len(answer.records)  # servers may give fewer than were asked for
        return None if total is not None and reached >= total else str(reached)

    def _cursor(self, answer: Answer) -> str | None:
        if self._pages.header is not None:
            return answer.headers.get(self._pages.header) or None
        value = find(answer.document, self._sync.next_cursor) if isinstance(answer.document, dict) else None
        if isinstance(value, bool) or not _is_scalar(value):
            raise Permanent(f"{self._where}: no text or number at next_cursor = {self._sync.next_cursor!r}")
        text = "" if value is None else str(value)
        if not text:
            return None
        # A cursor in base64 may begin with a slash, so a path needs a query as well.
        relative = text.startswith("?") or (text.startswith("/") and "?" in text)
        return _join(answer, text) if self._pages.style == "url" or relative or is_url(text) else text

    def _more(self, answer: Answer) -> bool | None:
        if self._pages.more is None:
            return None
        more = find(answer.document, self._pages.more)
        if not isinstance(more, bool):
            raise Permanent(f"{self._where}: no true or false at more = {self._pages.more!r}")
        return more

    def _total(self, answer: Answer) -> int | None:
        if self._pages.total is None:
            return None
        total = find(answer.document, self._pages.total)
        if isinstance(total, bool) or not isinstance(total, int) or total < 0:
            raise Permanent(f"{self._where}: no whole number at total = {self._pages.total!r}")
        return total

    def _check_end(self, answer: Answer, position: SyncPosition) -> None:
        """Refuse an end that the answer contradicts."""
        pages = self._pages
        style = self.style if pages.style == "auto" else pages.style
        explained = {pages.more, pages.total, pages.header and pages.header.lower(), *pages.ignore}
        if pages.style in ("auto", "cursor", "url") and pages.header is None:
            explained.add(self._sync.next_cursor)
        records, count = position.fetched(len(answer.records))
        if pages.style == "page":  # an empty page is behind the last one
            count = int(position.page or pages.first) - pages.first + bool(answer.records)
        signs = signs_of_more(answer.document, self._sync.items, answer.headers, position.page, records, count)
        signs = [sign for sign in signs if sign.name not in explained and sign.name.split(".")[-1] not in pages.ignore]
        if pages.style == "auto" and self.style == "single" and not signs and self._is_full(answer):
            raise Permanent(
                f"{self._where}: a full page of {len(answer.records)} records, and nothing that says whether it is the "
                'last one; declare `pages`, such as pages = "page", or pages = "single" if it is'
            )
        if signs:
            raise Permanent(
                f"{self._where}: the answer has {signs[0].text}, and with pages = {style!r} this is the last page; "
                f"declare `pages`, next_cursor and their paths as the API has them, or add {signs[0].name!r} to "
                "pages.ignore if it does not mean more pages"
            )

    def _is_full(self, answer: Answer) -> bool:
        """Whether a page has as many records as were asked for, and no field or header about a next page."""
        document = answer.document
        if isinstance(document, dict) and find(document, self._sync.next_cursor, _MISSING) is not _MISSING:
            return False
        sizes = {str(value) for name, value in answer.url.params.items() if name.lower() in _SIZES}
        if isinstance(self._sync.body, dict):
            sizes |= {str(value) for name, value in self._sync.body.items() if name.lower() in _SIZES}
        return "link" not in answer.headers and str(len(answer.records)) in sizes


def _detected(answer: Answer, following: str | None) -> str:
    if following is None:
        return "single"
    if following == _link(answer):
        return "link"
    return "url" if is_url(following) else "cursor"


def _link(answer: Answer) -> str | None:
    """URL of the header `Link` with `rel="next"`."""
    import httpx

    response = httpx.Response(200, headers=[("link", value) for value in answer.headers.get_list("link")])
    url = response.links.get("next", {}).get("url")
    return None if not url else _join(answer, url)


def _join(answer: Answer, reference: str) -> str:
    import httpx

    try:
        return str(answer.url.join(reference))
    except httpx.InvalidURL:
        return reference  # refused with a clear message when it is requested


def _is_scalar(value: object) -> bool:
    return value is None or isinstance(value, str | int | float | Decimal)
