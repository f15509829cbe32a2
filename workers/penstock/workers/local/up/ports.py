"""Ports of `penstock up` on 127.0.0.1."""

from __future__ import annotations

import os
import socket

from penstock.config.errors import ConfigError

FLOWER_PORT = 5555
FLOWER_VARIABLE = "PENSTOCK_FLOWER_PORT"
GATEWAY_PORT = 8480
GATEWAY_VARIABLE = "PENSTOCK_GATEWAY_PORT"
REDIS_VARIABLE = "PENSTOCK_REDIS_PORT"


class PortInUse(ConfigError):
    """Another program listens on a requested port.

    Attributes:
        port: the port.
    """

    def __init__(self, what: str, port: int, variable: str) -> None:
        super().__init__(
            f"port {port} on 127.0.0.1, for {what}, is in use by another program (`ss -ltnp 'sport = :{port}'` shows "
            f"which); stop it, or choose another port: {variable}={port + 1} penstock up"
        )
        self.port = port


def port_from_environment(variable: str) -> int | None:
    """The port that an environment variable names, or None.

    Raises:
        ConfigError: the value is not a port.
    """
    text = os.environ.get(variable)
    if text is None:
        return None
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise ConfigError(f"{variable}: {text!r} is not a port; use a number from 1 to 65535")
    return int(text)


def is_free(port: int) -> bool:
    """Whether a server can listen on the port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: a port closed just now is free
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def require_free(what: str, port: int, variable: str) -> int:
    """The port, if it is free. Raises PortInUse."""
    if not is_free(port):
        raise PortInUse(what, port, variable)
    return port
