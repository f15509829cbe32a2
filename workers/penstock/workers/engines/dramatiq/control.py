"""Celery's remote control, answered through kombu's mailbox by a process without Celery."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from penstock.config.supervision import start_thread
from penstock.workers.engines.monitoring import kombu_connection
from penstock.workers.engines.monitoring.control_messages import answer, drop_garbage, listen, read_no_garbage

log = logging.getLogger("penstock.remote")

_TURN_SECONDS = 1.0
_HEARTBEAT_SECONDS = 30
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 5.0


class Control:
    """Listens as a node of Celery's mailbox, over any number of lost connections.

    Arguments:
        node: the worker's name.
        commands: by name; each takes the command's arguments and returns the answer.
        clock: kombu's LamportClock, shared with the worker's events.
    """

    def __init__(self, url: str, node: str, commands: dict[str, Callable[..., Any]], clock: Any) -> None:
        from kombu.pidbox import Mailbox

        drop_garbage()
        self._url = url
        mailbox: Any = Mailbox
        self._mailbox = mailbox("celery", type="fanout", clock=clock, accept=["json"])
        handlers = {
            name: lambda _state, _command=command, **arguments: _command(**arguments)
            for name, command in commands.items()
        }
        self._node = self._mailbox.Node(node, state=None, handlers=handlers)
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = start_thread("penstock control", self._run, self._stopping, vital=False)

    def stop(self) -> None:
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(2 * _TURN_SECONDS + kombu_connection.CONNECT_SECONDS)

    def _run(self) -> None:
        pause = _FIRST_PAUSE
        while not self._stopping.is_set():
            connection = kombu_connection.connection(self._url, heartbeat_seconds=_HEARTBEAT_SECONDS)
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
                _close(connection)

    def _listen(self, connection: Any) -> None:
        self._mailbox.connection = connection
        read_no_garbage(connection)
        consumer = listen(self._node, connection.channel(), lambda body, message: answer(self._node, body, message))
        while not self._stopping.is_set():
            try:
                connection.drain_events(timeout=_TURN_SECONDS)
            except TimeoutError:
                connection.heartbeat_check()
        consumer.cancel()


def _close(connection: Any) -> None:
    try:
        connection.collect(socket_timeout=1)
    except Exception:
        log.debug("closing the connection for remote control failed", exc_info=True)
