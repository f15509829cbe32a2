"""Connections through kombu, for events and remote control, which workers share with Celery's tools."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs, urlsplit

from penstock.config.process.imports import without
from penstock.producers.senders import scheme
from penstock.producers.senders.rabbitmq.names import tls_options
from penstock.producers.senders.redis.sentinel import Sentinels, is_sentinel

CONNECT_SECONDS = 5.0


def kombu_url(url: str) -> str:
    """A broker URL as kombu wants it: it calls a Unix socket `redis+socket://`."""
    parts = urlsplit(url)
    if is_sentinel(url):
        return Sentinels(url).kombu_url()
    if parts.scheme == "amqps":
        return tls_options(url)[0]
    if parts.scheme == "rediss" and "ssl_cert_reqs=" not in parts.query:
        # Without it, kombu does not verify the server.
        return parts._replace(query="&".join(filter(None, (parts.query, "ssl_cert_reqs=required")))).geturl()
    if parts.scheme != "unix":
        return url
    database = parse_qs(parts.query).get("db", ["0"])[0]
    account = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
    return f"redis+socket://{account}{parts.path}?virtual_host={database}"


def kombu_options(url: str) -> dict[str, Any]:
    """Transport options that keep a broker that hangs from hanging the thread that speaks to it."""
    if scheme(url) == "redis":
        sentinels = Sentinels(url).kombu_options() if is_sentinel(url) else {}
        timeouts = {"socket_connect_timeout": CONNECT_SECONDS, "socket_timeout": CONNECT_SECONDS}
        return {**timeouts, "socket_keepalive": True, **sentinels}
    return {"write_timeout": CONNECT_SECONDS}


def named(url: str, name: str) -> dict[str, Any]:
    """Transport options that give a connection a name, in the broker's list of connections."""
    if scheme(url) == "redis":
        return {"client_name": name.replace(" ", "_")}
    return {"client_properties": {"connection_name": name}}


def kombu_tls(url: str) -> dict[str, Any] | None:
    """TLS options for kombu and Celery in addition to the URL; None for Redis, whose URL has them."""
    return tls_options(url)[1] or None if urlsplit(url).scheme == "amqps" else None  # type: ignore[return-value]


def celery_settings(url: str) -> dict[str, Any]:
    """The settings of a Celery application that connect it to this broker."""
    return {
        "broker_url": kombu_url(url),
        "broker_transport_options": kombu_options(url),
        "broker_use_ssl": kombu_tls(url),
        "broker_connection_timeout": CONNECT_SECONDS,
    }


def import_client(url: str) -> None:
    """Import kombu's client of this broker ahead of the first connection, without packages that it only may use.

    For a process with one thread. A package that handlers have imported before stays.
    """
    with without("billiard", "yaml", "opentelemetry.metrics", "opentelemetry.sdk", "django"):
        import kombu.pidbox
        import kombu.serialization

        if scheme(url) == "redis":
            import kombu.transport.redis
        else:
            import kombu.transport.pyamqp  # noqa: F401


def connection(url: str, *, heartbeat_seconds: int = 0, **options: Any) -> Any:
    """A kombu connection, not yet connected. Connecting raises what the transport raises; it does not retry.

    Arguments:
        heartbeat_seconds: of AMQP, for connections that read and call `heartbeat_check`.
        options: more options of the transport.
    """
    from kombu.connection import Connection

    return Connection(  # type: ignore[no-untyped-call]
        kombu_url(url),
        connect_timeout=CONNECT_SECONDS,
        ssl=kombu_tls(url) or False,
        heartbeat=heartbeat_seconds,
        transport_options={**kombu_options(url), **options},
    )


def open_channel(connection: Any) -> Any:
    """A channel of a connected kombu connection; on Redis always the same, since each has connections of its own."""
    return connection.default_channel if connection.transport.driver_type == "redis" else connection.channel()


def sockets(connection: Any) -> list[Any]:
    """The sockets that a kombu connection reads from; none until it is subscribed, on Redis."""
    if connection.transport.driver_type != "redis":
        return [connection.connection.sock]
    subscription = connection.default_channel.subclient.connection
    return [] if subscription is None or subscription._sock is None else [subscription._sock]
