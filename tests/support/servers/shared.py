"""The servers that tests use where they run, and cleaning up on those that others use too."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from contextlib import suppress
from urllib.parse import urlsplit

import pytest

from penstock.workers.local.up.redis_server import RedisServer
from support.servers.processes import output_of

AMQP_URL = os.environ.get("PENSTOCK_TEST_AMQP_URL", "amqp://guest:guest@127.0.0.1:5672//")
POSTGRES_URL = os.environ.get("PENSTOCK_TEST_POSTGRES_URL", "postgresql+psycopg://postgres@127.0.0.1:5432/postgres")
MARIADB_URL = os.environ.get("PENSTOCK_TEST_MARIADB_URL", "mysql+pymysql://root@127.0.0.1:3306/mysql")

SERVERS = {"RabbitMQ": AMQP_URL, "PostgreSQL": POSTGRES_URL, "MariaDB": MARIADB_URL}
_reachable: dict[str, bool] = {}


def reachable(name: str) -> bool:
    """Whether a server of this name answers on its port; asked once a run."""
    if name not in _reachable:
        parts = urlsplit(SERVERS[name])
        try:
            socket.create_connection((parts.hostname or "127.0.0.1", parts.port or 0), 1.0).close()
            _reachable[name] = True
        except OSError:
            _reachable[name] = False
    return _reachable[name]


def need(name: str) -> None:
    """Skip the test where the server is missing."""
    if not reachable(name):
        parts = urlsplit(SERVERS[name])
        pytest.skip(f"{name} is not reachable at {parts.hostname}:{parts.port}")


def broker_url(broker: str, redis_server: RedisServer) -> str:
    """The URL of this run's Redis, or of RabbitMQ."""
    if broker == "rabbitmq":
        need("RabbitMQ")
        return AMQP_URL
    return redis_server.url


def delete_queues(broker: str, prefix: str) -> None:
    """Delete the queues of a test that has ended on RabbitMQ; this run's Redis ends with the run.

    `rabbitmqctl` takes seconds to start, so this waits for some more tests to end, or for the end of the run.
    """
    if broker == "rabbitmq":
        _ended.append(prefix)
        if len(_ended) >= _TOGETHER:
            delete_ended()


def delete_ended() -> None:
    """Delete the queues of all tests that have ended."""
    if _ended:
        delete_rabbitmq(AMQP_URL, *_ended)
        _ended.clear()


_ended: list[str] = []
"""Prefixes of tests that have ended and whose queues exist."""
_TOGETHER = 3
"""Each quorum queue reserves file handles of the server: some three hundred use up the 1,024 that it often has, and
then it answers nothing more."""


def for_pika(url: str) -> str:
    """The URL as pika reads it: to it the virtual host of `amqp://host//` has an empty name."""
    return url.removesuffix("//") + "/%2F" if url.endswith("//") else url


LANES = ("", ".high", ".low")
USUAL_QUEUES = ("default", "dispatcher", "emails", "uploads", "reports", "syncs", "webhooks", "q", "a", "b")


def delete_rabbitmq(url: str, *prefixes: str) -> None:
    """Delete every queue whose name starts with one of the prefixes, and their exchanges for dead letters."""
    from amqp.exceptions import AMQPError

    from penstock.producers.senders.rabbitmq.publisher import connect

    names = _listed(url, prefixes)
    if names is None:
        usual = [f"{queue}{lane}" for queue in USUAL_QUEUES for lane in LANES]
        names = [f"{prefix}.{name}" for prefix in prefixes for name in ("dead", *usual)]
    connection = connect(url, timeout_seconds=10)
    try:
        channel = connection.channel()
        for name in names:
            channel.queue_delete(name)
        for prefix in prefixes:
            with suppress(AMQPError):
                for name in (f"{prefix}.dead", f"{prefix}-stock"):  # the second is a stock client's
                    channel.exchange_delete(name)
    finally:
        connection.close()


def _listed(url: str, prefixes: tuple[str, ...]) -> list[str] | None:
    """The queues there are; None where `rabbitmqctl` cannot tell."""
    rabbitmqctl = shutil.which("rabbitmqctl")
    parts = urlsplit(url)
    if rabbitmqctl is None or parts.hostname not in ("127.0.0.1", "localhost"):
        return None
    vhost = parts.path.removeprefix("/") or "/"
    command = [rabbitmqctl, "-q", "-p", vhost, "list_queues", "name", "--no-table-headers"]
    try:
        code, names = output_of(command, 60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return [name for name in names.split() if name.startswith(prefixes)] if code == 0 else None
