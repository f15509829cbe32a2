"""A round of a pair of engine and broker, with servers or queues of its own."""

from __future__ import annotations

import shutil
import socket
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from auditing import Report
from chaos_site import Site, running_postgres
from rounds import run_round
from support.servers.killable_redis import KillableRedis, running_redis
from support.servers.rabbitmq_node import RabbitmqNode, find_rabbitmq_server
from support.servers.shared import AMQP_URL, delete_rabbitmq

from penstock.producers.senders.rabbitmq.publisher import Publisher

PAIRS = ("celery-redis", "dramatiq-redis", "celery-rabbitmq", "dramatiq-rabbitmq")


class ServerMissing(Exception):
    """The pair's broker is not reachable, or not installed."""


def has_postgres() -> bool:
    return shutil.which("pg_ctl") is not None or any(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))


def has_rabbitmq() -> bool:
    """Whether a node of our own can be started, and so be killed."""
    return find_rabbitmq_server() is not None


def one_round(
    pair: str,
    seed: int,
    count: int,
    seconds: float,
    folder: Path,
    *,
    database: str = "sqlite",
    ledger_url: str | None = None,
    own_rabbitmq: bool = False,
    first: Sequence[str] = (),
    wipes: int = 0,
) -> Report:
    """A round of a pair.

    Arguments:
        database: `sqlite`, or `postgres`: a server of its own, which is killed.
        ledger_url: another one in place of these, which is left alone.
        own_rabbitmq: a node of its own, which is killed; else queues of its own on the one there is.
        first, wipes: see `run_round`.

    Raises:
        ServerMissing: RabbitMQ is not reachable.
    """
    with open_site(pair, folder, database=database, ledger_url=ledger_url, own_rabbitmq=own_rabbitmq) as site:
        return run_round(site, seed, count=count, seconds=seconds, first=first, wipes=wipes)


@contextmanager
def open_site(pair: str, folder: Path, *, database: str, ledger_url: str | None, own_rabbitmq: bool) -> Iterator[Site]:
    """A site of a pair, not started; for arguments and errors see `one_round`."""
    engine, _, broker = pair.partition("-")
    prefix = f"c{uuid.uuid4().hex[:10]}"
    with ExitStack() as opened:
        server: KillableRedis | RabbitmqNode | None = None
        if broker == "redis":
            server = opened.enter_context(running_redis(folder))
        elif own_rabbitmq:
            server = RabbitmqNode(folder / "rabbitmq")
            opened.callback(server.kill)
            server.start()
            _declare(server.url, prefix)
        else:
            _reach(AMQP_URL)
            opened.callback(delete_rabbitmq, AMQP_URL, prefix)
        postgres = None
        if database == "postgres":
            postgres = opened.enter_context(running_postgres())
        url = AMQP_URL if server is None else server.url
        site = Site(
            engine,
            folder,
            prefix,
            broker_url=url,
            broker_server=server,
            postgres=postgres,
            ledger_url=ledger_url,
        )
        opened.callback(site.stop)
        yield site


def _declare(url: str, prefix: str) -> None:
    """Make the queues some time before anything breaks: RabbitMQ 3.10 never finds a leader again for one that was
    declared just before it was killed, and then refuses all that is sent there."""
    publisher = Publisher(url, prefix, 5.0)
    for queue in ("chaos", "dispatcher"):
        publisher.depth(queue)
    publisher.close()
    time.sleep(3.0)


def _reach(url: str) -> None:
    parts = urlsplit(url)
    try:
        socket.create_connection((parts.hostname or "", parts.port or 5672), 2.0).close()
    except OSError as error:
        raise ServerMissing(f"RabbitMQ at {parts.hostname}:{parts.port}: {error}") from error
