"""Names on RabbitMQ of a queue's lanes, and what the broker URL says."""

from __future__ import annotations

import ssl
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from penstock.config.errors import ConfigError
from penstock.producers.senders.hosts import check_files, host_and_port
from penstock.schemas.jobs.kind import PRIORITIES, Priority

_SUFFIXES: dict[Priority, str] = {"high": ".high", "normal": "", "low": ".low"}


def lane_name(prefix: str, queue: str, priority: Priority) -> str:
    """The name of a lane's queue on RabbitMQ.

    Raises:
        ConfigError: the queue's name would make it another queue's lane.
    """
    if queue == "dead" or queue.endswith((".high", ".low")):
        raise ConfigError(f"a queue on RabbitMQ cannot be called {queue!r}: 'dead', '*.high' and '*.low' are taken")
    return f"{prefix}.{queue}{_SUFFIXES[priority]}"


def lane_of(prefix: str, name: str) -> tuple[str, Priority]:
    """Name of a lane → its queue and priority."""
    queue = name.removeprefix(f"{prefix}.")
    for priority in PRIORITIES:
        if (suffix := _SUFFIXES[priority]) and queue.endswith(suffix):
            return queue.removesuffix(suffix), priority
    return queue, "normal"


def dead_name(prefix: str) -> str:
    """Name of the exchange and of the queue for messages that RabbitMQ gave up on."""
    return f"{prefix}.dead"


def tls_options(url: str) -> tuple[str, dict[str, Any] | bool]:
    """URL → the URL without its `ssl_…` parameters, and these as py-amqp wants them; False for `amqp://`, without TLS.

    As for Redis: `ssl_ca_certs` (else the system's), `ssl_certfile`, `ssl_keyfile`, `ssl_cert_reqs=none` to accept
    any server, `ssl_check_hostname=false` to accept a certificate of another name.

    Raises:
        ConfigError: a parameter is unknown, or a file cannot be read.
    """
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query))
    parameters = {key.removeprefix("ssl_"): query.pop(key) for key in list(query) if key.startswith("ssl_")}
    plain = parts._replace(query=urlencode(query)).geturl() if parameters else url
    if parts.scheme != "amqps":
        return plain, False
    where = f"broker URL of RabbitMQ at {address(url)}"
    verified = parameters.pop("cert_reqs", "required").lower() not in ("none", "cert_none")
    named = parameters.pop("check_hostname", "true").lower() != "false"
    if unknown := parameters.keys() - {"ca_certs", "certfile", "keyfile"}:
        raise ConfigError(f"{where}: unknown parameter ssl_{min(unknown)}")
    check_files(where, parameters)
    options: dict[str, Any] = dict(parameters)
    if verified and named:
        options["server_hostname"] = parts.hostname  # py-amqp checks the name only where it is given one
    if not verified:
        options["cert_reqs"] = ssl.CERT_NONE
    return plain, options


def address(url: str) -> str:
    """`host:port` of an AMQP URL, for messages."""
    return host_and_port(url, 5671 if url.startswith("amqps:") else 5672)
