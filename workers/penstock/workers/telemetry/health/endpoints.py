"""`Endpoints`: where a worker or dispatcher says how it is, over HTTP and to `penstock probe`."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from penstock.config.settings import Settings
from penstock.workers.telemetry.health.probe_socket import ProbeSocket

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from penstock.workers.telemetry.health.http_server import HttpServer

Check = Callable[[], str | None]


class Endpoints:
    """The port, if one is set, and the socket.

    Arguments:
        name, role: of this process.
        registry: of its metrics; None: no port is set.
        live, ready, started: whether it makes progress, takes jobs, and has started; None, or the reason why not.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        name: str,
        role: str,
        registry: CollectorRegistry | None,
        live: Check,
        ready: Check,
        started: Check,
    ) -> None:
        who = {"pid": os.getpid(), "name": name, "role": role, "prefix": settings.prefix}

        def answer() -> dict[str, Any]:
            return {**who, "live": live(), "ready": ready(), "started": started()}

        self._socket = ProbeSocket(answer)
        self._http: HttpServer | None = None
        if settings.http_port is not None and registry is not None:
            from penstock.workers.telemetry.health.http_server import HttpServer

            self._http = HttpServer(
                settings.http_host, settings.http_port, registry=registry, live=live, ready=ready, started=started
            )

    def open(self, *, patient: bool = False) -> None:
        """Answer from now on.

        Arguments:
            patient: where the port is in use, by the process that this one follows, answer there once it is free.

        Raises:
            ConfigError: the port is in use; never if `patient`.
        """
        if self._http is not None:
            self._http.start(patient=patient)
        self._socket.start()

    def close(self) -> None:
        """Answer no more. It may be called twice, and without `open`."""
        if self._http is not None:
            self._http.close()
        self._socket.close()
