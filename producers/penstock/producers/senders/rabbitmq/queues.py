"""The queues that a RabbitMQ has. AMQP cannot list them; its management API can."""

from __future__ import annotations

import base64
import json
import ssl
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

from penstock.config.errors import BrokerUnavailable
from penstock.producers.senders.rabbitmq.names import dead_name, lane_of, tls_options


def find_queues(url: str, prefix: str, timeout_seconds: float, management_url: str | None = None) -> set[str]:
    """The names of all queues under a prefix. Arguments and errors as of `list_lanes`."""
    return {lane_of(prefix, lane)[0] for lane in list_lanes(url, prefix, timeout_seconds, management_url)}


def list_lanes(
    url: str, prefix: str, timeout_seconds: float, management_url: str | None = None, *columns: str
) -> dict[str, dict[str, Any]]:
    """The lanes of all queues under a prefix: name → its object of the management API.

    Arguments:
        management_url: of the management API; None: the broker's host, port 15672 (15671 with TLS), and its user.
        columns: fields of the objects, in addition to `name` and `arguments`.

    Raises:
        BrokerUnavailable: the management API does not answer, or not to this user.
        ConfigError: a file that the URL names for TLS cannot be read.
    """
    from kombu.connection import Connection

    plain, tls = tls_options(url)
    parameters: Any = Connection(plain)  # type: ignore[no-untyped-call]
    address = management_url or _default_address(parameters.hostname or "localhost", tls)
    parts = urlsplit(address)
    user = parts.username or parameters.userid or "guest"
    password = parts.password or parameters.password or "guest"
    host = f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)
    address = urlunsplit((parts.scheme, host, parts.path.rstrip("/"), "", ""))
    vhost = quote(parameters.virtual_host or "/", safe="")
    fields = ",".join(("name", "arguments", *columns))
    request = urllib.request.Request(f"{address}/api/queues/{vhost}?columns={fields}")  # noqa: S310
    request.add_header("Authorization", f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}")
    try:
        # Without the proxies of the environment: the request has the broker's password.
        handlers = [urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=_context(tls))]
        with urllib.request.build_opener(*handlers).open(request, timeout=timeout_seconds) as answer:
            queues = json.load(answer)
        dead = dead_name(prefix)
        return {queue["name"]: queue for queue in queues if queue["arguments"].get("x-dead-letter-exchange") == dead}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        raise BrokerUnavailable(
            f"the management API of RabbitMQ at {address} does not list its queues: {error}; enable its plugin "
            "(rabbitmq-plugins enable rabbitmq_management), or set PENSTOCK_RABBITMQ_MANAGEMENT_URL"
        ) from error


def _default_address(host: str, tls: dict[str, Any] | bool) -> str:
    return f"http://{host}:15672" if tls is False else f"https://{host}:15671"


def _context(tls: dict[str, Any] | bool) -> ssl.SSLContext:
    options = tls if isinstance(tls, dict) else {}
    context = ssl.create_default_context(cafile=options.get("ca_certs"))
    if "certfile" in options:
        context.load_cert_chain(options["certfile"], options.get("keyfile"))
    context.check_hostname = "server_hostname" in options or not options
    if options.get("cert_reqs") == ssl.CERT_NONE:
        context.verify_mode = ssl.CERT_NONE
    return context
