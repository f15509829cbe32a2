"""The host in a broker's URL, and looking it up in bounded time."""

from __future__ import annotations

import ipaddress
import socket
import threading
from collections.abc import Mapping
from urllib.parse import urlsplit

from penstock.config.errors import ConfigError


def host_and_port(url: str, default_port: int) -> str:
    """`host:port` of a URL, for messages.

    Raises:
        ConfigError: the port is not a number; the message leaves out the rest of the URL, which may hold a password.
    """
    parts = urlsplit(url)
    try:
        return f"{parts.hostname or 'localhost'}:{parts.port or default_port}"
    except ValueError as error:
        raise ConfigError(f"broker URL of {parts.hostname}: {error}") from error


def check_files(where: str, files: Mapping[str, str]) -> None:
    """See that the files for TLS can be read: OpenSSL does not say which one it could not.

    Arguments:
        files: their paths, by the name of the URL's parameter without its `ssl_`.

    Raises:
        ConfigError: one cannot.
    """
    for name, path in files.items():
        try:
            with open(path, "rb"):
                pass
        except OSError as error:
            raise ConfigError(f"{where}: ssl_{name}={path}: {error.strerror}") from error


def look_up(host: str, port: int, timeout_seconds: float) -> int:
    """How many addresses the host has.

    `getaddrinfo` takes no timeout and may wait half a minute for a silent name server, so it runs in a thread that
    is left behind when it takes too long.

    Raises:
        OSError: the host does not exist, or no answer came in time (TimeoutError).
    """
    try:
        ipaddress.ip_address(host)
    except ValueError:
        pass
    else:
        return 1
    counts: list[int] = []
    errors: list[OSError] = []

    def ask() -> None:
        try:
            counts.append(len(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))
        except (OSError, UnicodeError) as error:
            errors.append(error if isinstance(error, OSError) else OSError(f"not a host name: {error}"))

    thread = threading.Thread(target=ask, name="penstock-look-up", daemon=True)
    thread.start()
    thread.join(timeout_seconds)
    if errors:
        raise errors[0]
    if not counts:
        raise TimeoutError(f"no answer for the name {host} within {timeout_seconds:g} s")
    return counts[0]
