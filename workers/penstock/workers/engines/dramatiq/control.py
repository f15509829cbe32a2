"""Celery's remote control and events over one connection of kombu, for a process without Celery."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from penstock.config.supervision import start_thread
from penstock.producers.senders import scheme
from penstock.workers.brokers.wakeup import Wakeup
from penstock.workers.engines.monitoring import kombu_connection
from penstock.workers.engines.monitoring.control_messages import answer, drop_garbage, listen, read_no_garbage
from penstock.workers.engines.monitoring.events import Events

log = logging.getLogger("penstock.remote")

_TURN_SECONDS, _READ_SECONDS = 1.0, 0.001
_READS = 100
"""Messages between two turns of the events at most."""
_HEARTBEAT_SECONDS = 30
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 5.0


class Control:
    """Listens as a node of Celery's mailbox and publishes events, over any number of lost connections.

    Arguments:
        commands: by name; each takes the command's arguments and returns the answer. Without any it does not listen.
        events: the worker's.
    """

    def __init__(self, url: str, commands: dict[str, Callable[..., Any]], events: Events) -> None:
        from kombu.pidbox import Mailbox

        if scheme(url) == "redis":
            drop_garbage()
        self._url = url
        mailbox: Any = Mailbox
        self._mailbox = mailbox("celery", type="fanout", clock=events.clock, accept=["json"])
        handlers = {
            name: lambda _state, _command=command, **arguments: _command(**arguments)
            for name, command in commands.items()
        }
        self._node = self._mailbox.Node(events.hostname, state=None, handlers=handlers)
        self._events, self._wakeup = events, Wakeup()
        events.wake = self._wakeup.set
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = start_thread("penstock control", self._run, self._stopping, vital=False)

    def stop(self) -> None:
        self._stopping.set()
        self._wakeup.set()
        if self._thread is not None:
            self._thread.join(2 * _TURN_SECONDS + kombu_connection.CONNECT_SECONDS)
        self._wakeup.close()

    def _run(self) -> None:
        pause = _FIRST_PAUSE
        while not self._stopping.is_set():
            name = kombu_connection.named(self._url, self._events.hostname)
            connection = kombu_connection.connection(self._url, heartbeat_seconds=_HEARTBEAT_SECONDS, **name)
            try:
                connection.connect()
                if pause > _FIRST_PAUSE:
                    log.warning("remote control is back")
                pause = _FIRST_PAUSE
                self._listen(connection)
            except Exception as error:  # whatever a transport raises: a worker must not die of its remote control
                if pause == _FIRST_PAUSE:
                    log.warning("remote control is unavailable: %s: %s", type(error).__name__, error)
                self._stopping.wait(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)
            finally:
                self._events.detach()
                _close(connection)

    def _listen(self, connection: Any) -> None:
        self._mailbox.connection = connection
        read_no_garbage(connection)
        if self._node.handlers:
            channel = kombu_connection.open_channel(connection)
            listen(self._node, channel, lambda body, message: answer(self._node, body, message))
        self._events.attach(connection)
        while not self._stopping.is_set():
            with suppress(TimeoutError):
                for _ in range(_READS):  # on Redis the first one subscribes
                    connection.drain_events(timeout=_READ_SECONDS)
            connection.heartbeat_check()
            pause = min(self._events.turn(), _TURN_SECONDS)
            self._wakeup.wait(kombu_connection.sockets(connection), pause)


def _close(connection: Any) -> None:
    try:
        connection.collect(socket_timeout=1)
    except Exception:
        log.debug("closing the connection for remote control failed", exc_info=True)
