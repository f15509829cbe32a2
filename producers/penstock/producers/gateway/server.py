"""The gateway's server: `penstock gateway`."""

from __future__ import annotations

import signal
from types import FrameType

import uvicorn
from fastapi import FastAPI

from penstock.config.settings import Settings
from penstock.ledger.sql.database import Database
from penstock.producers.enqueue.producer import Producer
from penstock.producers.gateway.app import create_app

GRACE_SECONDS = 10
"""For requests under way when the gateway is asked to stop."""


def run_gateway(settings: Settings, *, address: str = "127.0.0.1", port: int = 8480) -> int:
    """Serve until SIGTERM or SIGINT. Returns the exit code.

    Raises:
        ConfigError: a setting is wrong.
    """
    # Wrong settings are reported here in a line; uvicorn would report a failure of the app.
    Database(settings.database_url).close()
    Producer.from_settings(settings).close()
    server = Server(create_app(settings), address=address, port=port)
    server.run()
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
            server_header=False,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
        super().__init__(config)
        self._app = app

    def stop(self) -> None:
        """Stop the server; from any thread or a signal handler."""
        if (deps := getattr(self._app.state, "deps", None)) is not None:
            deps.end_streams()
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.stop()  # uvicorn's own would raise the signal once more when all is done
