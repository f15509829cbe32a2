"""Signs in an answer that more pages follow, whatever the style of the pages."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_FLAGS = {"hasmore", "hasnext", "hasnextpage", "more", "moreitems", "morepages", "hasmorepages", "moreresults"}
_NEXT = {
    *(
        "next",
        "nextpage",
        "nextcursor",
        "nextpagetoken",
        "nexttoken",
        "nexturl",
        "nextlink",
        "nextoffset",
        "nextmarker",
    ),
    *("nextpageurl", "nexthref", "nextstart", "nextpagelink", "odatanextlink", "continuation", "continuationtoken"),
    *("continuationkey", "nextpageurl", "nextkey", "nextid", "nextpageid", "nextpagecursor", "lastevaluatedkey"),
}
_ECHOED = {"cursor", "pagetoken"}
"""Names of a cursor that may also be that of the page itself."""
_PAGES = {"totalpages", "pagecount", "lastpage", "pages", "numpages", "totalpage", "pagestotal", "maxpage"}
_RECORDS = {"total", "totalcount", "totalrecords", "totalresults", "totalitems", "totalelements", "totalsize", "count"}
_RECORDS |= {"odatacount", "totalrows", "recordcount", "itemcount", "resultcount", "totalhits"}
_DEPTH = 4


@dataclass(frozen=True, slots=True)
class Sign:
    """`name`: path of the field, or the header in small letters; `text`: for a message."""

    name: str
    text: str


def signs_of_more(
    document: Any,
    items: str,
    headers: Mapping[str, str],
    page: str | None,
    records: int | None,
    pages: int | None,
) -> list[Sign]:
    """Signs that a page is not the last.

    Arguments:
        items: path of the list of records, which is not looked into.
        page: the cursor of this page.
        records, pages: how many this pass has had, this page included; None: its beginning is not known.
    """
    signs: list[Sign] = []
    if re.search(r'rel="?[^",;]*\bnext\b', headers.get("link", ""), re.IGNORECASE):
        signs.append(Sign("link", "a Link header with rel=next"))
    for name, value in headers.items():
        if name.startswith("x-") and _is_sign(_plain(name[2:]), _number(value), page, records, pages):
            signs.append(Sign(name, f"the header {name}: {value}"))
    for path, value in _fields(document, items, "", 0):
        if _is_sign(_plain(path.rpartition(".")[2]), value, page, records, pages):
            label = str(value).lower() if isinstance(value, bool) else value if isinstance(value, int) else "a value"
            signs.append(Sign(path, f"{path}: {label}"))
    return signs


def _is_sign(name: str, value: Any, page: str | None, records: int | None, pages: int | None) -> bool:
    if name in _FLAGS:
        return value is True or str(value).lower() == "true"
    if name in _NEXT:
        return not isinstance(value, bool) and value not in (None, "", 0) and value != {} and value != []
    if name in _ECHOED:
        return isinstance(value, str | int) and not isinstance(value, bool) and str(value) not in ("", "0", page)
    if isinstance(value, bool) or not isinstance(value, int):
        return False
    return (name in _PAGES and pages is not None and value > pages) or (
        name in _RECORDS and records is not None and value > records
    )


def _fields(document: Any, items: str, path: str, depth: int) -> Iterator[tuple[str, Any]]:
    if not isinstance(document, dict) or depth == _DEPTH:
        return
    for name, value in document.items():
        inner = f"{path}.{name}" if path else str(name)
        if inner == items:
            continue
        yield inner, value
        yield from _fields(value, items, inner, depth + 1)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z]", "", name.lower())


def _number(text: str) -> int | str:
    return int(text) if re.fullmatch(r"\d{1,15}", text) else text
