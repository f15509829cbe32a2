"""Celery's worker program, hosting ours."""

from __future__ import annotations

import logging
import socket
import time
import warnings
from collections.abc import Sequence
from typing import Any

from celery import bootsteps, signals
from celery.apps.worker import Worker as CeleryWorker
from celery.apps.worker import install_cry_handler
from celery.concurrency.base import BasePool
from celery.exceptions import WorkerShutdown
from celery.platforms import EX_FAILURE, EX_OK, SecurityWarning
from celery.worker import control, pidbox, state
from celery.worker.consumer.connection import Connection
from celery.worker.consumer.control import Control
from celery.worker.control import Panel
from kombu.common import ignore_errors

from penstock.config.settings import Settings
from penstock.producers.senders import scheme
from penstock.workers.engines.celery.app import after_setup, make_app
from penstock.workers.engines.celery.signals import SignalsObserver
from penstock.workers.engines.host import Host
from penstock.workers.engines.monitoring import kombu_connection
from penstock.workers.engines.monitoring.control_messages import answer, drop_garbage, listen, read_no_garbage
from penstock.workers.engines.monitoring.remote_control import Remote
from penstock.workers.engines.renewal.link import ParentLink

log = logging.getLogger("penstock.remote")

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0


def run_worker(
    settings: Settings,
    *,
    queues: Sequence[str],
    concurrency: int | None,
    name: str | None,
    log_level: str,
    parent: ParentLink | None,
) -> int:
    """See `penstock.workers.engines.run_worker`."""
    # Celery warns of running as root because of pickle, which is never accepted here.
    warnings.filterwarnings("ignore", category=SecurityWarning)
    app = make_app(settings)
    hub_wakeup = _Wakeup()

    def on_stopping() -> None:
        signals.worker_shutting_down.send(sender=host.worker.name, sig="SIGTERM", how="Warm", exitcode=EX_OK)

    def on_stopped() -> None:
        state.should_stop = EX_OK if host.error is None else EX_FAILURE
        hub_wakeup.wake()

    host = Host(
        settings,
        engine="celery",
        queues=queues,
        concurrency=concurrency,
        name=name,
        parent=parent,
        clock=app.clock,
        on_stopping=on_stopping,
        on_stopped=on_stopped,
    )
    host.events.wake = hub_wakeup.wake
    app.penstock_host, app.penstock_wakeup = host, hub_wakeup
    app.conf.broker_transport_options |= kombu_connection.named(settings.broker_url, host.worker.name)
    app.steps["consumer"].add(HostStep)
    host.worker.executor.observers.append(SignalsObserver(app, host.worker.name))
    answer_remote_control(host.remote, inspect_only=settings.remote_control == "inspect")
    if scheme(settings.broker_url) == "redis":
        drop_garbage()
        restore_nothing()
    signals.setup_logging.connect(_leave_logging_alone)
    program = Program(
        app=app,
        hostname=host.worker.name,
        pool=ExecutorPool,
        concurrency=host.worker.executor.concurrency,
        exclude_queues=[app.conf.task_default_queue],
        loglevel=log_level,
        quiet=True,
        task_events=False,  # these and heartbeats come from our Events, on both engines
        without_heartbeat=True,
        without_mingle=True,
        without_gossip=True,
    )
    for set_up in after_setup:
        set_up(host)
    with host.signals():
        try:
            program.start()
        finally:
            host.stop()
            host.stopped.wait()
            state.should_stop = None  # for the next worker of this process, where this one is a guest
    if host.error is not None:
        raise host.error
    return int(program.exitcode or EX_OK)


class Program(CeleryWorker):  # type: ignore[misc]  # celery has no types
    """Celery's worker program with the signal handlers of the host, which drain before Celery stops its loop."""

    def install_platform_tweaks(self, worker: Any) -> None:
        """Only SIGUSR1, which prints the stack of every thread; the others are in `Host.signals`."""
        install_cry_handler()


class HostStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """Starts our worker once Celery's consumer is connected, and publishes events over that connection. Celery restarts
    its steps when it has lost it; the worker has connections of its own and goes on."""

    requires = (Connection,)
    _begun, _pause = float("-inf"), _FIRST_PAUSE
    _turn: Any = None

    def start(self, c: Any) -> None:
        wakeup: _Wakeup = c.app.penstock_wakeup
        host: Host = c.app.penstock_host
        read_no_garbage(c.connection)
        c.hub.add_reader(wakeup.receiver, self._on_wakeup, c)
        try:
            host.start()
        except Exception as error:  # Celery would print a traceback and lose the error
            raise WorkerShutdown(EX_FAILURE) from error
        # Celery restarts its steps at once, also where Redis refuses them time and again.
        soon = time.monotonic() - self._begun < 2 * _LONGEST_PAUSE
        self._pause = min(2 * self._pause, _LONGEST_PAUSE) if soon else _FIRST_PAUSE
        if soon:
            host.stopped.wait(self._pause)
        self._begun = time.monotonic()
        host.events.attach(c.connection)
        self._turn_events(c)

    def stop(self, c: Any) -> None:
        c.hub.remove_reader(c.app.penstock_wakeup.receiver)
        c.app.penstock_host.events.detach()
        if self._turn is not None:
            self._turn.cancel()

    def _on_wakeup(self, c: Any) -> None:
        c.app.penstock_wakeup.clear()
        self._turn_events(c)

    def _turn_events(self, c: Any) -> None:
        if self._turn is not None:
            self._turn.cancel()
        pause = c.app.penstock_host.events.turn()
        self._turn = c.hub.call_later(pause, self._turn_events, c)


# Jobs do not wait for remote control: a full Redis refuses to declare its queue.
Control.requires = (*Control.requires, HostStep)


class ExecutorPool(BasePool):  # type: ignore[misc]
    """A pool for Celery, which the executor answers for. It never gets a task."""

    def on_start(self) -> None:
        signals.worker_process_init.send(sender=None)  # as Celery's solo pool does: this process runs the jobs

    @property
    def num_processes(self) -> int:
        return int(self.app.penstock_host.worker.executor.concurrency)

    def grow(self, n: int = 1) -> None:
        self.app.penstock_host.remote.pool_grow(n)

    def shrink(self, n: int = 1) -> None:
        self.app.penstock_host.remote.pool_shrink(n)

    def _get_info(self) -> dict[str, Any]:
        info: dict[str, Any] = self.app.penstock_host.remote.stats()["pool"]
        return info


def answer_remote_control(remote: Remote, *, inspect_only: bool) -> None:
    """Put our commands in the place of Celery's, which would describe a task consumer that has nothing.

    Commands that an application has added stay, except, if only inspection is allowed, those that do not inspect.
    """
    for name, function in tuple(Panel.data.items()):
        is_inspection = name in Panel.meta and Panel.meta[name].type == "inspect"
        if function.__module__ == control.__name__ or (inspect_only and not is_inspection):
            del Panel.data[name]
    for name, command in remote.commands().items():
        Panel.data[name] = lambda _state, _command=command, **arguments: _command(**arguments)
    pidbox.Pidbox = Mailbox


class Mailbox(pidbox.Pidbox):  # type: ignore[misc]
    """Celery's mailbox of a worker, which takes any message."""

    _is_shared = False
    """Whether its channel is used by others, too, and so is not closed."""

    def start(self, c: Any) -> None:
        channel = kombu_connection.open_channel(c.connection)
        self._is_shared = channel is c.connection.default_channel
        self.consumer = listen(self.node, channel, self.on_message)

    def _close_channel(self, c: Any) -> None:
        if self._is_shared and self.consumer is not None:
            ignore_errors(c, self.consumer.cancel)  # type: ignore[no-untyped-call]
            self.consumer = None
        elif not self._is_shared:
            super()._close_channel(c)

    def on_message(self, body: Any, message: Any) -> None:
        self._forward_clock()
        try:
            answer(self.node, body, message)
        except Exception as error:
            log.warning("remote control cannot answer: %s: %s", type(error).__name__, error)
            self.reset()


def restore_nothing() -> None:
    """Keep kombu from restoring what a worker of Celery's has lost: we consume none of its lists. A Redis that is full
    or takes no writes would refuse the lock for it, and that ends Celery's program."""
    from kombu.transport.redis import QoS

    QoS.restore_visible = lambda *_, **__: None  # type: ignore[method-assign]


def _leave_logging_alone(**_: Any) -> None:
    """Do nothing: Celery sets up no logging if its `setup_logging` signal has a receiver."""


class _Wakeup:
    """Ends a wait of Celery's hub from another thread; its own `call_soon` would wait for the next timer."""

    def __init__(self) -> None:
        self.receiver, self._sender = socket.socketpair()
        self.receiver.setblocking(False)

    def wake(self) -> None:
        self._sender.send(b"\0")

    def clear(self, *_: Any) -> None:
        self.receiver.recv(1024)
