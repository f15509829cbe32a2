"""Redis server behind a URL, and new connections to it. The redis library is imported with the first one."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from penstock.config.errors import ConfigError
from penstock.producers.senders.hosts import check_files, host_and_port, look_up
from penstock.producers.senders.redis.protocol import Reply, exchange, pack
from penstock.producers.senders.redis.sentinel import Sentinels, is_sentinel

TRUST_IDLE_SECONDS = 30.0
"""An idle connection older than this is replaced: a firewall may have cut it without a word, and then a command on it
would wait for the whole timeout."""

ANSWERS = 2
"""Replies to `Servers.questions`."""


def address(url: str) -> str:
    """`host:port` (or the socket's path, or the sentinels) of a Redis URL, for messages."""
    if is_sentinel(url):
        return Sentinels(url).address
    parts = urlsplit(url)
    return parts.path if parts.scheme == "unix" else host_and_port(url, 6379)


class Servers:
    """Resolves the Redis to connect to (the master behind Sentinel), and rejects clusters and replicas.

    Attributes:
        server_url: that of the last connection; behind sentinels it changes.
    """

    def __init__(self, url: str, timeout_seconds: float) -> None:
        self.url, self.address = url, address(url)
        self.timeout_seconds = timeout_seconds
        self.server_url = url
        self._sentinels = Sentinels(url) if is_sentinel(url) else None
        self._checked = ""

    def find(self) -> str:
        """Ask the sentinels for the master, if there are any. Raises OSError."""
        if self._sentinels is not None:
            self.server_url = self._sentinels.find(self._ask)
        return self.server_url

    def questions(self) -> bytes:
        """Packed commands, `ANSWERS` of them, to ask on a new connection; none to a server that was asked before.

        Behind sentinels a server is always asked: the one they name may have lost its role a moment ago.
        """
        checked = self._sentinels is None and self._checked == self.server_url
        return b"" if checked else pack("INFO", "cluster") + pack("INFO", "replication")

    def check(self, cluster: Reply, replication: Reply) -> None:
        """Check the replies; an error among them, of an account without that permission, counts as a good one.

        Raises:
            ConfigError: the server is a node of a Redis Cluster; OSError: it is not a master.
        """
        if isinstance(cluster, bytes) and b"cluster_enabled:1" in cluster:
            raise ConfigError(
                f"Redis at {self.address} is a node of a Redis Cluster, which holds each queue on another server: "
                "use one server, or one with replicas behind Redis Sentinel (redis+sentinel://…?master=NAME)"
            )
        if self._sentinels is not None and isinstance(replication, bytes) and b"role:slave" in replication:
            raise OSError(f"{urlsplit(self.server_url).netloc.rpartition('@')[2]} is not the master any more")
        self._checked = self.server_url

    def _ask(self, url: str, command: tuple[str, ...]) -> Reply:
        from redis import exceptions

        connection = new_connection(url, self.timeout_seconds)
        try:
            connect(connection, self.timeout_seconds)
            [reply] = exchange(connection, pack(*command), 1, exceptions.ResponseError)
        finally:
            connection.disconnect()
        if isinstance(reply, Exception):
            raise reply
        return reply


def connect(connection: Any, timeout_seconds: float) -> None:
    """Connect in bounded time. Raises redis-py's errors, and OSError."""
    if host := getattr(connection, "host", None):
        connection.socket_connect_timeout = timeout_seconds / look_up(host, connection.port, timeout_seconds)
    connection.connect()


def new_connection(url: str, timeout_seconds: float, asynchronous: bool = False, **options: Any) -> Any:
    if asynchronous:
        from redis.asyncio.connection import Connection, parse_url
    else:
        from redis.connection import Connection, parse_url  # type: ignore[assignment]
    try:
        options_of_url: dict[str, Any] = dict(parse_url(url))
    except ValueError as error:
        raise ConfigError(f"broker URL of Redis at {address(url)}: {error}") from error
    tls_files = {
        key: options_of_url[f"ssl_{key}"]
        for key in ("ca_certs", "certfile", "keyfile")
        if f"ssl_{key}" in options_of_url
    }
    check_files(f"broker URL of Redis at {address(url)}", tls_files)
    connection_class = options_of_url.pop("connection_class", Connection)
    defaults: dict[str, Any] = {
        "socket_timeout": timeout_seconds,
        "socket_connect_timeout": timeout_seconds,
        "protocol": 2,  # RESP3 answers XREADGROUP in another shape
    }
    if urlsplit(url).scheme != "unix":
        defaults["socket_keepalive"] = True
    return connection_class(**(defaults | options_of_url | options))
