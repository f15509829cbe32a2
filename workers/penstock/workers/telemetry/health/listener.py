"""`listen`: opens the port of a worker or dispatcher."""

from __future__ import annotations

import socket

from penstock.config.errors import ConfigError


def open_listener(host: str, port: int) -> socket.socket:
    """Raises OSError: the port is in use, or the address is not one of this machine's."""
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    return socket.create_server((address[0], port), family=family, backlog=128)


def listen(host: str, port: int) -> socket.socket:
    """Raises ConfigError: the port is in use, or the address is not one of this machine's."""
    try:
        return open_listener(host, port)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}:{port} for metrics and health: {error.strerror or error}; "
            f"choose another port or address: http_port, http_host (PENSTOCK_HTTP_PORT, PENSTOCK_HTTP_HOST)"
        ) from error
