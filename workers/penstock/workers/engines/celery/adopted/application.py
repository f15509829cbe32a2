"""The adopted application: found, imported, and its tasks registered as kinds with handlers."""

from __future__ import annotations

import logging
import os
import sys
from functools import partial
from typing import TYPE_CHECKING

import celery
from celery import signals
from celery.app.trace import setup_worker_optimizations
from celery.app.utils import find_app

from penstock.config.errors import ConfigError
from penstock.config.settings import Settings
from penstock.producers.contrib.celery import redirect
from penstock.producers.senders import open_sender_from
from penstock.workers.engines.celery import app as engine
from penstock.workers.engines.celery.adopted.beat import declare_schedules
from penstock.workers.engines.celery.adopted.beat_tables import BeatTables, tables_scheduler
from penstock.workers.engines.celery.adopted.control import answer_commands
from penstock.workers.engines.celery.adopted.doubts import doubts_about, pool_of
from penstock.workers.engines.celery.adopted.ends import EndsObserver
from penstock.workers.engines.celery.adopted.request import ReceivedObserver
from penstock.workers.engines.celery.adopted.sending import Sending
from penstock.workers.engines.celery.adopted.tasks import adopt_tasks, queue_of
from penstock.workers.engines.host import Host
from penstock.workers.handlers.discovery import ImportFailed, own_trace

if TYPE_CHECKING:
    from penstock.workers.dispatcher.dispatcher import OpenService

log = logging.getLogger("penstock.worker")

_TRACE_LOG = logging.getLogger("celery.app.trace")
"""Says the start, the end and the error of each task, as Penstock's own log of jobs does with more fields."""
VARIABLE = "PENSTOCK_CELERY_APP"
"""Environment variable with the application's name, for processes that run attempts of its tasks alone."""


adopted: list[Application] = []
"""The application that this process has adopted, if it has."""


class Application:
    """A Celery application that this process has adopted.

    Attributes:
        app: the `celery.Celery`.
        name: as it was asked for, `module:app`.
        queues: those that its workers would consume, and those that its routes name.
        pool: `processes` or `threads`, as its `worker_pool` says.
        concurrency: its `worker_concurrency`; None: not set.
        services: those that a dispatcher must run for it.
    """

    def __init__(self, app: celery.Celery, name: str) -> None:
        self.app, self.name = app, name
        self.queues = sorted({*app.amqp.queues.consume_from, *(queue_of(app, task) for task in app.tasks.values())})
        self.pool, self.concurrency = pool_of(app), app.conf.worker_concurrency
        self.services: list[OpenService] = []

    def make_current(self, hostname: str | None = None) -> None:
        """Make it the current and default application of all threads, as a worker of Celery's does."""
        setup_worker_optimizations(self.app, hostname)

    def attach(self, host: Host) -> None:
        """Let a worker run its tasks."""
        self.make_current(host.worker.name)
        conf = self.app.conf  # which names the modules of the tasks, as Celery's worker has it, for `inspect conf`
        conf.include = tuple(sorted({*conf.include, *(type(task).__module__ for task in self.app.tasks.values())}))
        host.worker.executor.observers.append(ReceivedObserver(self.app, host.worker.name))
        host.worker.executor.observers.append(EndsObserver(self.app, host.worker.name))
        answer_commands(self.app, host)


def load_application(name: str) -> celery.Celery:
    """Import an application, as `celery -A` finds it, with the modules of its tasks.

    Raises:
        ImportFailed: it cannot be imported. ConfigError: this is not an application.
    """
    folder = os.getcwd()
    if folder not in sys.path and "" not in sys.path:
        sys.path.insert(0, folder)
    try:
        app = find_app(name)
        if not isinstance(app, celery.Celery):
            raise ConfigError(f"--celery {name} is {app!r}, not a Celery application; name one, as in shop.celery:app")
        app.set_current()
        app.set_default()
        app.finalize()
        app.loader.import_default_modules()
    except ConfigError:
        raise
    except Exception as error:
        raise ImportFailed(f"cannot import the Celery application {name}", own_trace(error)) from error
    return app


def adopt_application(name: str, settings: Settings, *, sends: bool = True) -> Application:
    """Load an application and register its tasks as kinds.

    Arguments:
        sends: what its tasks send goes straight to our queues; for a worker. False: its `beat_schedule`, or what
            django-celery-beat keeps, becomes schedules; for a dispatcher.

    Raises:
        ImportFailed: it cannot be imported. ConfigError: it is not an application, or a task cannot be a kind.
    """
    return adopt_loaded(load_application(name), name, settings, sends=sends)


def adopt_loaded(app: celery.Celery, name: str, settings: Settings, *, sends: bool = True) -> Application:
    """Like `adopt_application`, for an application that this process has loaded.

    Arguments:
        name: by which processes that run attempts alone load it.
    """
    application = Application(app, name)
    adopt_tasks(app, settings)
    for doubt in doubts_about(app, settings):
        log.warning("Celery application %s: %s", name, doubt)
    if not sends:
        if (scheduler := tables_scheduler(app)) is not None:
            application.services.append(partial(BeatTables, app, name, scheduler))
        else:
            for line in declare_schedules(app, name, settings):
                log.warning("Celery application %s: %s", name, line)
    else:
        redirect(app, settings, Sending(open_sender_from(settings)).send)
        os.environ[VARIABLE] = name
        engine.after_setup.append(application.attach)
    application.make_current()
    if _TRACE_LOG.level == logging.NOTSET:
        _TRACE_LOG.setLevel(logging.CRITICAL)
    adopted.append(application)
    return application


def init_process() -> None:
    """Send the signal of a new process that runs tasks, as pools do: fixups of the application wait for it."""
    signals.worker_process_init.send(sender=None)
