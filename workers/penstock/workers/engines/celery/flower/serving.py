"""Flower in this process, set up for our workers."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import logging
import os
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import celery
from flower.command import apply_env_options, extract_settings
from flower.views import BaseHandler
from tornado.ioloop import IOLoop
from tornado.options import options

from penstock.config.settings import Settings
from penstock.ledger.queries.scope import EVERYTHING
from penstock.producers.senders import open_sender_from
from penstock.schemas.jobs.kind import DISPATCHER_QUEUE
from penstock.workers.engines.celery.flower.access.identity import Identity
from penstock.workers.engines.celery.flower.console import Console
from penstock.workers.engines.celery.flower.services import Services
from penstock.workers.engines.celery.flower.stock.events import WorkerEvents
from penstock.workers.engines.celery.flower.stock.routes import routes
from penstock.workers.engines.celery.flower.stock.workers import Roll
from penstock.workers.engines.monitoring import kombu_connection

log = logging.getLogger("penstock.flower")

_FORGET_SECONDS = 3600
"""A worker that is gone is no longer listed after this: every start of a worker has a new name."""
_NO_QUEUE = "none"
"""Flower asks for the application's default queue while it knows no worker."""
_COLUMNS = "name,uuid,state,runtime,retries,worker,received"


def serve(settings: Settings, *, address: str, port: int, logins: list[str], url_prefix: str, folder: Path) -> int:
    """Serve until SIGTERM or SIGINT; see `penstock.workers.engines.celery.flower.server.run_flower`."""
    loop = IOLoop.current()
    for number in (signal.SIGTERM, signal.SIGINT):
        # Not an exception, which some code between here and the loop might swallow: it stops the loop once that runs.
        loop.asyncio_loop.add_signal_handler(number, loop.stop)  # type: ignore[attr-defined]
    os.umask(0o077)
    delete_history(folder)
    _set_options(address, port, url_prefix)
    if os.environ.pop("FLOWER_UNAUTHENTICATED_API", None):
        log.warning("FLOWER_UNAUTHENTICATED_API is ignored: the console's API always asks for a login")
    app = celery.Celery("penstock", set_as_current=True)
    app.conf.update(
        **kombu_connection.celery_settings(settings.broker_url),
        task_default_queue=_NO_QUEUE,
        # RabbitMQ 4 frowns on queues that are neither durable nor exclusive.
        event_queue_exclusive=True,
    )
    depths = Depths(settings)
    BaseHandler.get_broker = lambda handler: depths.within(handler)
    services = Services(settings)
    identity = Identity(settings, logins, oauth=options.auth, read_only=options.read_only)
    if identity.has_oauth and not settings.console.roles and settings.flower_admins is None:
        log.warning("everyone who logs in by OAuth is an admin; [console.roles] says who has which role")
    events = WorkerEvents(app, loop, most_workers=options.max_workers)
    flower = Console(services, identity, capp=app, options=options, events=events)
    flower.add_routes(routes(metrics_login=settings.console.metrics_login))
    Roll(flower, _FORGET_SECONDS).start()
    try:
        log.info(
            "Flower listens on http://%s:%d/%s", address, flower.start_http_server(), url_prefix and f"{url_prefix}/"
        )
        flower.start()
    finally:
        flower.stop()
        services.close()
    return 0


class Depths:
    """Queue lengths for Flower's broker page. Flower itself looks for Celery's lists, and would show zeros."""

    def __init__(self, settings: Settings) -> None:
        self._always = {DISPATCHER_QUEUE, *settings.queues}
        self._sender = open_sender_from(settings)
        self._scope = EVERYTHING

    def within(self, handler: Any) -> Depths:
        """The queues that exist for the person who asks."""
        narrowed = copy.copy(self)
        narrowed._scope = handler.person.scope
        return narrowed

    async def queues(self, names: Iterable[str]) -> list[dict[str, Any]]:
        """How many jobs wait in the queues that workers consume, that are configured, and in the dispatcher's."""
        all_names = {name for name in names if name != _NO_QUEUE} | self._always
        queue_names = sorted(filter(self._scope.includes_queue, all_names))
        waiting = await asyncio.get_running_loop().run_in_executor(None, self._sender.depths, queue_names)
        return [{"name": name, "messages": waiting[name], "messages_ready": waiting[name]} for name in queue_names]


def delete_history(folder: Path) -> None:
    """Delete the files in which earlier versions kept jobs: an erasure would miss them."""
    files = [file for file in folder.glob("history*") if file.is_file() or file.is_symlink()]
    for file in files:
        file.unlink(missing_ok=True)
    if files:
        log.warning("%d files of Flower's history in %s were deleted: the ledger has the jobs", len(files), folder)
    with contextlib.suppress(OSError):  # it has files of others, or is not there
        folder.rmdir()


def _set_options(address: str, port: int, url_prefix: str) -> None:
    """Set our defaults, then `FLOWER_…` of the environment, then those that are ours to say."""
    _set(purge_offline_workers=_FORGET_SECONDS, tasks_columns=_COLUMNS)
    apply_env_options()
    # Who may log in is the business of `access`. No history, since the ledger is the history.
    _set(address=address, port=port, basic_auth=[], url_prefix=url_prefix)
    _set(persistent=False, state_save_interval=0, enable_events=False)
    extract_settings()
    logging.getLogger("tornado.access").setLevel(logging.ERROR)


def _set(**values: Any) -> None:
    for name, value in values.items():
        setattr(options, name, value)
