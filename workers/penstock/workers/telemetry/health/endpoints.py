"""`Endpoints`: where a worker or dispatcher says how it is, over HTTP and to `penstock probe`."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any

from penstock.config.settings import Settings
from penstock.workers.telemetry.health.probe_socket import ProbeSocket
from penstock.workers.telemetry.health.siblings import Check, Siblings

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from penstock.workers.telemetry.health.http_server import HttpServer


class Endpoints:
    """The port, if one is set, and the socket.

    Arguments:
        name, role: of this process.
        registry: of its metrics; None: no port is set.
        live, ready, started: whether it makes progress, takes jobs, and has started; None, or the reason why not.
        siblings, listener: of several processes of one worker, which share the port; None: this is the only one. All
            must be live for `/live`, and one ready for `/ready`.
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
        siblings: Siblings | None = None,
        listener: socket.socket | None = None,
    ) -> None:
        group = None if siblings is None else siblings.group
        who = {"pid": os.getpid(), "name": name, "role": role, "prefix": settings.prefix, "group": group}

        def answer() -> dict[str, Any]:
            return {**who, "live": live(), "ready": ready(), "started": started()}

        self._http: HttpServer | None = None
        if settings.http_port is None or registry is None:
            self._socket = ProbeSocket(answer)
            return
        from prometheus_client import generate_latest

        from penstock.workers.telemetry.health.http_server import HttpServer

        where = (settings.http_host, settings.http_port)
        if siblings is None:
            self._socket = ProbeSocket(answer)
            self._http = HttpServer(*where, registry=registry, live=live, ready=ready, started=started)
        else:
            self._socket = ProbeSocket(answer, lambda: siblings.label(generate_latest(registry)))
            self._http = HttpServer(
                *where,
                registry=registry,
                live=siblings.all("live", live),
                ready=siblings.any("ready", ready),
                started=siblings.any("started", started),
                listener=listener,
                complete=siblings.merge,
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
