"""The gateway's server: `penstock gateway`."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from types import FrameType

import uvicorn
from fastapi import FastAPI

from penstock.config import supervision
from penstock.config.settings import Settings
from penstock.ledger.sql.database import Database
from penstock.producers.enqueue.producer import Producer
from penstock.producers.gateway.app import create_app
from penstock.producers.gateway.connections import bounded, without_queries

log = logging.getLogger("penstock.gateway")

GRACE_SECONDS = 10
"""For requests under way when the gateway is asked to stop."""
MOST_MESSAGE_BYTES = 4096
"""A message of a WebSocket's client. It is ignored; a larger one ends the connection (1009)."""

_HEADERS = [
    ("Cache-Control", "no-store"),
    ("X-Content-Type-Options", "nosniff"),
    ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"),
    ("Referrer-Policy", "no-referrer"),
]
"""Of every answer: it is for programs, and no browser should keep, render or frame it."""


def run_gateway(settings: Settings, *, address: str = "127.0.0.1", port: int = 8480) -> int:
    """Serve until SIGTERM or SIGINT. Returns the exit code.

    Raises:
        ConfigError: a setting is wrong.
        ProcessFailed: a loop of it failed again and again, or its event loop ended.
    """
    # Wrong settings are reported here in a line; uvicorn would report a failure of the app.
    Database(settings.database_url).close()
    Producer.from_settings(settings).close()
    server = Server(create_app(settings), address=address, port=port)
    supervision.on_give_up(server.fail)
    try:
        server.run()
    except BaseException as error:  # out of a task or callback: SystemExit(0) would pass for an orderly end
        if not server.started:
            raise  # uvicorn has logged why, such as a port that is in use
        log.critical("%r ended the event loop; this process ends", error, exc_info=error)
        server.fail(f"{error!r} ended the event loop")
    finally:
        supervision.on_give_up(None)
    if server.started and not server.should_exit:
        server.fail("the server ended unasked")
    if server.failure is not None:
        raise supervision.ProcessFailed(server.failure)
    return 0 if server.started else 1


class Server(uvicorn.Server):
    """Stops in order: streams end at once, other requests have some seconds to finish."""

    def __init__(self, app: FastAPI, *, address: str, port: int) -> None:
        config = uvicorn.Config(
            app,
            host=address,
            port=port,
            log_config=None,  # ours is set up
            access_log=False,
            http=bounded(app.state.max_connections),
            ws_max_size=MOST_MESSAGE_BYTES,
            ws_max_queue=4,
            server_header=False,
            headers=_HEADERS,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
        super().__init__(config)
        server_log = logging.getLogger("uvicorn.error")
        server_log.addFilter(without_queries)
        if server_log.getEffectiveLevel() < logging.INFO:
            server_log.setLevel(logging.INFO)  # below, the headers of WebSockets are logged, with their keys
        self._app = app
        self.failure: str | None = None

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until it is stopped. What is raised out of the event loop leaves that open: to close it may hang.

        Threads of the loop that still wait for a server are left behind; their requests have had their time.
        """
        loop = (self.config.get_loop_factory() or asyncio.new_event_loop)()
        asyncio.set_event_loop(loop)
        loop.run_until_complete(self.serve(sockets))
        loop.run_until_complete(loop.shutdown_asyncgens())
        asyncio.set_event_loop(None)
        loop.close()

    def fail(self, reason: str) -> None:
        """Stop the server, which ends the process with an error; from any thread."""
        self.failure = self.failure or reason
        self.stop()

    def stop(self) -> None:
        """Stop the server; from any thread or a signal handler."""
        if (deps := getattr(self._app.state, "deps", None)) is not None:
            deps.end_streams()
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.stop()  # uvicorn's own would raise the signal once more when all is done
