"""Run all services of a layout, and stop them however the block around them ends."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial

from penstock.config.settings import redact_url
from penstock.ledger.members.heartbeats import record_worker_exit
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.upgrade import upgrade
from penstock.producers.senders import open_sender_from
from penstock.workers.local.up.layout import Layout, redis_service, services, write_environment
from penstock.workers.local.up.signals import Stopping
from penstock.workers.local.up.supervisor import Supervisor

STOP_MARGIN_SECONDS = 5.0
"""Extra time of a worker beyond its grace, to record outcomes and sign off."""


@contextlib.contextmanager
def running_services(
    layout: Layout, *, lock: int, stopping: Stopping, say: Callable[[str], None]
) -> Iterator[tuple[Supervisor, Database]]:
    """Run everything while the block does; yields when all is ready, or `stopping` is set.

    Arguments:
        lock: the folder's, held until the last service has ended.

    Raises:
        BrokerUnavailable, LedgerUnavailable: what is configured cannot be reached.
        PenstockError: a service did not start; the message ends with its log.
    """
    database = Database(layout.settings.database_url)
    grace = layout.settings.grace_seconds + STOP_MARGIN_SECONDS
    died = partial(record_worker_exit, database)
    supervisor = Supervisor(layout.logs, lock=lock, grace_seconds=grace, say=say, died=died)
    try:
        if layout.redis_port is not None:
            supervisor.start([redis_service(layout, layout.redis_port)], stopping)
        else:
            _check_broker(layout)
            say(f"the broker is {redact_url(layout.settings.broker_url)}, as configured")
        revision = upgrade(database)
        say(f"the ledger is {redact_url(layout.settings.database_url)}, at revision {revision}")
        write_environment(layout)
        supervisor.start(services(layout, database), stopping)
        yield supervisor, database
    finally:
        supervisor.stop(stopping.hurry)
        database.close()


def _check_broker(layout: Layout) -> None:
    settings = layout.settings
    sender = open_sender_from(settings)
    try:
        sender.ping()
    finally:
        sender.close()
