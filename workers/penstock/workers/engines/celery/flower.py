"""Flower in this process, set up for our workers."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import celery
from flower.app import Flower
from flower.command import apply_env_options, extract_settings
from flower.urls import settings as flower_settings
from flower.views import BaseHandler
from tornado.options import options

from penstock.config.private_files import make_private_folder, tighten_all
from penstock.config.settings import Settings
from penstock.ledger.sql.database import Database
from penstock.producers.senders import open_sender_from
from penstock.schemas.jobs.kind import DISPATCHER_QUEUE
from penstock.workers.engines.celery.flower_forgetting import Forgetting
from penstock.workers.engines.celery.flower_guard import Acts, guard
from penstock.workers.engines.monitoring import kombu_connection

log = logging.getLogger("penstock.flower")

_SAVE_MILLISECONDS = 15_000
_FORGET_SECONDS = 3600
"""A worker that is gone is no longer listed after this: every start of a worker has a new name."""
_NO_QUEUE = "none"
"""Flower asks for the application's default queue while it knows no worker."""
_COLUMNS = "name,uuid,state,kwargs,runtime,retries,worker,received"


def serve(settings: Settings, *, address: str, port: int, logins: list[str], url_prefix: str, folder: Path) -> int:
    """Serve until SIGTERM or SIGINT; see `penstock.workers.engines.celery.flower_server.run_flower`."""
    os.umask(0o077)  # for its history, which it writes itself
    make_private_folder(folder)
    if count := tighten_all(folder):
        log.warning("%d files in %s were open to others; now they are for their owner alone", count, folder)
    _set_options(address, port, logins, url_prefix, folder)
    app = celery.Celery("penstock", set_as_current=True)
    app.conf.update(
        broker_url=kombu_connection.kombu_url(settings.broker_url),
        broker_transport_options=kombu_connection.kombu_options(settings.broker_url),
        broker_use_ssl=kombu_connection.kombu_tls(settings.broker_url),
        broker_connection_timeout=kombu_connection.CONNECT_SECONDS,
        task_default_queue=_NO_QUEUE,
        # RabbitMQ 4 frowns on queues that are neither durable nor exclusive.
        event_queue_exclusive=True,
    )
    depths = Depths(settings)
    BaseHandler.get_broker = lambda _: depths
    flower = Flower(capp=app, options=options, **flower_settings)
    database = Database(settings.database_url)
    guard(flower, Acts(database, settings.flower_admins))
    Forgetting(flower, database, Path(options.db)).start()
    signal.signal(signal.SIGTERM, _exit)
    try:
        log.info(
            "Flower listens on http://%s:%d/%s", address, flower.start_http_server(), url_prefix and f"{url_prefix}/"
        )
        flower.start()
    except (KeyboardInterrupt, SystemExit):
        pass
    finally:
        flower.stop()  # saves its history
        database.close()
    return 0


class Depths:
    """Queue lengths for Flower's broker page. Flower itself looks for Celery's lists, and would show zeros."""

    def __init__(self, settings: Settings) -> None:
        self._always = {DISPATCHER_QUEUE, *settings.queues}
        self._sender = open_sender_from(settings)

    async def queues(self, names: Iterable[str]) -> list[dict[str, Any]]:
        """How many jobs wait in the queues that workers consume, that are configured, and in the dispatcher's."""
        queue_names = sorted({name for name in names if name != _NO_QUEUE} | self._always)
        waiting = await asyncio.get_running_loop().run_in_executor(None, self._sender.depths, queue_names)
        return [{"name": name, "messages": waiting[name], "messages_ready": waiting[name]} for name in queue_names]


def _set_options(address: str, port: int, logins: list[str], url_prefix: str, folder: Path) -> None:
    """Set our defaults, then `FLOWER_…` of the environment, then the arguments."""
    _set(
        persistent=True,
        db=str(folder / "history"),
        state_save_interval=_SAVE_MILLISECONDS,
        purge_offline_workers=_FORGET_SECONDS,
        tasks_columns=_COLUMNS,
    )
    apply_env_options()
    _set(address=address, port=port, basic_auth=logins, url_prefix=url_prefix)
    extract_settings()
    logging.getLogger("tornado.access").setLevel(logging.ERROR)


def _set(**values: Any) -> None:
    for name, value in values.items():
        setattr(options, name, value)


def _exit(*_: object) -> None:
    sys.exit(0)
