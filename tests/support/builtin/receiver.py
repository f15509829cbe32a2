"""A receiver of webhooks: a real HTTP server that keeps what it got."""

from __future__ import annotations

import json
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from penstock.schemas.events.signatures import verify_standard

SECRETS = ("whsec_c2VjcmV0", "YW4gb2xkZXIgb25l")


class Receiver:
    """Answers with these statuses, one after the other and then 204, and keeps the requests."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.statuses: list[int] = []
        self.got: list[tuple[str, dict[str, str], bytes]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.got.append((self.path, {name.lower(): value for name, value in self.headers.items()}, body))
                self.send_response(receiver.statuses.pop(0) if receiver.statuses else 204)
                self.send_header("Retry-After", "0")
                self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if context is not None:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.url = f"http://localhost:{self._server.server_port}/hook"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def events(self) -> list[dict[str, Any]]:
        """The bodies, each signed with every secret and under its own id."""
        for _, headers, body in self.got:
            for secret in SECRETS:
                verify_standard(headers, body, [secret], now=time.time(), tolerance=300)
        return [json.loads(body) for _, _, body in self.got]
