"""A JSON API over HTTP that divides the same records into pages in every common style."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from support.builtin.servers import Answer, Api


class PagedApi(Api):
    """The style is the path, such as `/link` or `/graphql`; `/orders` is that of `Api`."""

    def __init__(self) -> None:
        super().__init__()
        self.base = self.url.removesuffix("/orders")
        self.extra: dict[str, Any] = {}

    def answer(self, request: BaseHTTPRequestHandler) -> Answer:
        if urlsplit(request.path).path == "/orders":
            return super().answer(request)
        style, query = urlsplit(request.path).path.strip("/"), dict(parse_qsl(urlsplit(request.path).query))
        length = int(request.headers.get("Content-Length") or 0)
        body = json.loads(request.rfile.read(length)) if length else {}
        self.requests.append(query)
        self.headers.append(dict(request.headers))
        if self.faults and not callable(fault := self.faults.pop(0)):
            return fault
        return self._page(style, query, body)

    def _page(self, style: str, query: dict[str, str], body: dict[str, Any]) -> Answer:
        headers = {"Content-Type": "application/json"}
        size, count = self.page, len(self.records)
        start = int(query.get("start", "0"))
        if style == "page":
            start = (int(query.get("page", "1")) - 1) * size
        elif style == "offset":
            start = int(query.get("offset", "0"))
        elif style == "last_id":
            ids = [record["id"] for record in self.records]
            start = ids.index(query["starting_after"]) + 1 if "starting_after" in query else 0
        elif style == "header":
            start = int(query.get("cursor", "0"))
        elif style == "graphql":
            start = int(body["variables"]["after"] or "0")
        records, end = self.records[start : start + size], start + size
        more = end < count
        document: Any = {"data": records, **self.extra}
        match style:
            case "link" if more:
                headers["Link"] = f'</link?start=0>; rel="first", </link?start={end}>; rel="next"'
            case "url":
                document["next"] = f"?start={end}" if more else None
            case "header" if more:
                headers["X-Cursor"] = str(end)
            case "flag" | "last_id":
                document["has_more"] = more
            case "pages":
                document["meta"] = {"total_pages": -(-count // size)}
            case "offset":
                document["total"] = count
            case "bare":
                document = records
            case "graphql":
                info = {"hasNextPage": more, "endCursor": str(end)}
                document = {"data": {"orders": {"nodes": records, "pageInfo": info}}}
            case _:
                pass
        return 200, headers, json.dumps(document).encode()
