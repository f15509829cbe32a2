"""The peers of the built-in workers in their tests: a mail server, an HTTP API, and a table to sync into."""

from __future__ import annotations

import asyncio
import email
import email.policy
import json
import threading
from collections.abc import Callable
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from aiosmtpd.controller import Controller
from sqlalchemy import create_engine, text

from penstock.producers.storage import FileStorage
from penstock.schemas.builtin.emails import SendEmail
from penstock.schemas.builtin.syncs import RunSync
from penstock.schemas.wire.ids import new_id
from penstock.workers import Context
from penstock.workers.builtin.databases import Databases
from penstock.workers.builtin.emails.content.templating import Templates
from penstock.workers.builtin.emails.handler import send_email
from penstock.workers.builtin.emails.mailers.mailer import Mailer
from penstock.workers.builtin.syncs.handler import run_sync
from penstock.workers.local.up.redis_server import free_port
from support.builtin.tools import settings

Answer = tuple[int, dict[str, str], bytes]


class Server:
    """A real SMTP server that keeps the accepted mails, and answers as `replies` says, by command or recipient."""

    def __init__(self) -> None:
        self.mails: list[tuple[str, list[str], EmailMessage]] = []
        self.replies: dict[str, str] = {}
        self.connections = 0
        self.commands: list[str] = []

    async def handle_EHLO(self, server, session, envelope, hostname, responses):
        self.connections += 1
        session.host_name = hostname
        return responses

    async def handle_NOOP(self, server, session, envelope, arg):
        self.commands.append("NOOP")
        return "250 OK"

    async def handle_MAIL(self, server, session, envelope, address, options):
        if reply := self.replies.get("MAIL"):
            if reply.startswith("once "):
                del self.replies["MAIL"]
            return reply.removeprefix("once ")
        envelope.mail_from = address
        return "250 OK"

    async def handle_RCPT(self, server, session, envelope, address, options):
        if reply := self.replies.get(address):
            return reply
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):
        if reply := self.replies.get("DATA"):
            return reply
        if self.replies.get("after DATA") == "close":
            self._keep(envelope)
            server.transport.close()
            return "250 OK"
        self._keep(envelope)
        return "250 OK"

    def _keep(self, envelope) -> None:
        mail = email.message_from_bytes(envelope.content, policy=email.policy.default)
        assert isinstance(mail, EmailMessage)
        self.mails.append((envelope.mail_from, list(envelope.rcpt_tos), mail))


def controlled(server: Server, **options: Any) -> Controller:
    controller = Controller(server, hostname="127.0.0.1", port=free_port(), **options)
    controller.start()
    return controller


def send(mailer: Mailer, ctx: Context, storage: FileStorage, job: SendEmail | None = None, **emails: Any) -> Any:
    job = job or SendEmail(to="a@example.com", subject="Hello", text="Hi there")
    configured = settings(emails={"from": "Shop <shop@example.com>", **emails})
    return send_email(job, ctx, mailer, Templates(configured.emails.templates), storage, configured)


class Api:
    """A JSON API over HTTP: orders in pages of three, by position or since a time. Counts requests, fails on demand."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.requests: list[dict[str, str]] = []
        self.headers: list[dict[str, str]] = []
        self.faults: list[Answer | Callable[[], None]] = []
        self.page = 3
        self.date: str | None = None
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                status, headers, body = api.answer(self)
                try:
                    self.send_response_only(status)
                    self.send_header("Date", api.date or self.date_time_string())
                    for name, value in {**headers, "Content-Length": str(len(body))}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(body)
                except OSError:
                    self.close_connection = True  # the client is gone

            do_POST = do_GET

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/orders"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self.thread.start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def add(self, count: int, **fields: Any) -> None:
        for _ in range(count):
            number = len(self.records) + 1
            changed = f"2026-01-01T00:00:{number:02}Z"
            self.records.append(
                {"id": f"o{number}", "amount": {"total": f"{number}.10"}, "updated_at": changed, **fields}
            )

    def answer(self, request: BaseHTTPRequestHandler) -> Answer:
        query = dict(parse_qsl(urlsplit(request.path).query))
        self.requests.append(query)
        self.headers.append(dict(request.headers))
        if self.faults:
            fault = self.faults.pop(0)
            if not callable(fault):
                return fault
            fault()
        since = query.get("updated_since", "")
        chosen = [record for record in self.records if record.get("updated_at", "") >= since]
        start = int(query.get("cursor", "0"))
        following = start + self.page if start + self.page < len(chosen) else None
        return ok({"data": chosen[start : start + self.page], "meta": {"next": following}})


def ok(document: object) -> Answer:
    return 200, {"Content-Type": "application/json"}, json.dumps(document).encode()


class Target:
    """A database, a table name of this test's own, and the settings of a sync into it."""

    def __init__(self, url: str, prefix: str, api: Api) -> None:
        self.url, self.name, self.api = url, f"{prefix}_orders", api
        self.engine = create_engine(url)

    def settings(self, **sync: Any) -> Any:
        described = {
            "url": self.api.url,
            "items": "data",
            "next_cursor": "meta.next",
            "table": self.name,
            "lookback": 0,
            **sync,
        }
        return settings(database_url=self.url, syncs={self.name: described})

    def rows(self, columns: str = "id") -> list[tuple[Any, ...]]:
        with self.engine.connect() as connection:
            rows = connection.execute(text(f"SELECT {columns} FROM {self.name}")).all()
        return sorted((tuple(row) for row in rows), key=lambda row: (len(str(row[0])), str(row[0])))

    def drop(self) -> None:
        with self.engine.begin() as connection:
            connection.execute(text(f"DROP TABLE IF EXISTS {self.name}"))
            try:
                connection.execute(text("DELETE FROM penstock_sync_cursors WHERE name = :n"), {"n": self.name})
            except Exception:
                connection.rollback()
        self.engine.dispose()


def run(
    target: Target, databases: Databases, configured: Any = None, ctx: Context | None = None, full: bool = False
) -> Any:
    job = RunSync(sync=target.name, full=full)
    return asyncio.run(run_sync(job, ctx or Context(job_id=new_id()), databases, configured or target.settings()))
