"""The demo's HTTP API: customers as pages of JSON, with the errors of a real API."""

from __future__ import annotations

import json
import random
import threading
from collections import Counter
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

RECORDS = 2_000
PAGE = 100
MOODS = {4: (429, "1"), 9: (503, None), 15: (429, "1"), 21: (503, "1")}
"""Number of the request, from 1 → status and `Retry-After` of the error response."""
_START = datetime(2026, 5, 1, tzinfo=UTC)


class CustomersApi:
    """Served from a thread on a free port of 127.0.0.1.

    `GET /customers?limit=…&cursor=…&updated_since=…` answers `{"items": […], "next_cursor": …}`, in the order of
    their last change.

    Attributes:
        records: by id; as the API has them.
        answers: how many requests got which status.
    """

    def __init__(self) -> None:
        chance = random.Random(42)
        self.records: dict[int, dict[str, Any]] = {
            number: {
                "id": number,
                "name": f"Customer {number:04d}",
                "credit": {"limit": f"{chance.randint(100, 9999)}.{chance.randint(0, 99):02d}"},
                "updated_at": _spelled(_START + timedelta(seconds=number)),
            }
            for number in range(1, RECORDS + 1)
        }
        self.answers: Counter[int] = Counter()
        self._requests = 0
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="customers api", daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/customers"

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def change(self, count: int) -> set[int]:
        """Raise the credit of some customers, as of a minute after the last change. Returns their ids."""
        with self._lock:
            chosen = random.Random(7).sample(sorted(self.records), count)
            now = max(datetime.fromisoformat(record["updated_at"]) for record in self.records.values())
            for step, number in enumerate(chosen):
                updated = _spelled(now + timedelta(minutes=1, seconds=step))
                self.records[number] |= {"credit": {"limit": "12345.67"}, "updated_at": updated}
            return set(chosen)

    def answer(self, query: dict[str, str]) -> tuple[int, dict[str, str], dict[str, Any]]:
        """Status, headers and body."""
        with self._lock:
            self._requests += 1
            status, retry_after = MOODS.get(self._requests, (200, None))
            self.answers[status] += 1
            if status != 200:
                return status, {"Retry-After": retry_after} if retry_after else {}, {"error": "not now"}
            since = query.get("updated_since")
            changed = [
                record
                for record in self.records.values()
                if since is None or datetime.fromisoformat(record["updated_at"]) > datetime.fromisoformat(since)
            ]
        changed.sort(key=lambda record: (record["updated_at"], record["id"]))
        start, limit = int(query.get("cursor", "0")), int(query.get("limit", str(PAGE)))
        following = start + limit if start + limit < len(changed) else None
        return 200, {}, {"items": changed[start : start + limit], "next_cursor": following}


def _handler(api: CustomersApi) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            query = {name: values[-1] for name, values in parse_qs(urlsplit(self.path).query).items()}
            status, headers, document = api.answer(query)
            body = json.dumps(document).encode()
            self.send_response(status)
            for name, value in {
                **headers,
                "Content-Type": "application/json",
                "Content-Length": str(len(body)),
            }.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Log nothing; `answers` counts the requests."""

    return Handler


def _spelled(time: datetime) -> str:
    return time.isoformat().replace("+00:00", "Z")
