"""Connections through kombu, for events and remote control, which workers share with Celery's tools."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs, urlsplit

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
        return {"socket_connect_timeout": CONNECT_SECONDS, "socket_keepalive": True, **sentinels}
    return {"write_timeout": CONNECT_SECONDS}


def kombu_tls(url: str) -> dict[str, Any] | None:
    """TLS options for kombu and Celery in addition to the URL; None for Redis, whose URL has them."""
    return tls_options(url)[1] or None if urlsplit(url).scheme == "amqps" else None  # type: ignore[return-value]


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
