"""`ParentLink`: a worker process's end of the socket to its parent.

Lines go over it: `ready` and `renew` to the parent, `retire` and `hurry` from it. It ends when the parent is gone.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from penstock.config.supervision import start_thread

if TYPE_CHECKING:
    from penstock.workers.brokers.redis.lease_keeper import KeeperProcess

VARIABLE = "PENSTOCK_WORKER_PARENT"
"""Environment variable with the descriptor of the socket and the number of the process, set by the parent."""
READY, RENEW, RETIRE, HURRY = b"ready", b"renew", b"retire", b"hurry"

_READY_SECONDS, _IDLE_SECONDS = 0.05, 1.0
"""Between looks whether the worker is ready, and, once it is, for a line of the parent's."""


class ParentLink:
    """The parent of this worker process.

    Arguments:
        number: counts the processes of the parent, from 1.
        group: the process id of a parent that has several processes; None: it has one.
        listener: of the port that these share; None: they have none.
        keeper: of the leases of all of them; None: each has one of its own.
    """

    def __init__(
        self,
        connection: socket.socket,
        number: int,
        *,
        group: int | None = None,
        listener: socket.socket | None = None,
        keeper: KeeperProcess | None = None,
    ) -> None:
        self.number, self.group, self.listener, self.keeper = number, group, listener, keeper
        self._socket, self._received = connection, b""
        self._stopping = threading.Event()

    @classmethod
    def from_environment(cls) -> ParentLink | None:
        """The link that a parent has left for this process; None: it has no such parent. A second call returns None."""
        if (words := os.environ.pop(VARIABLE, None)) is None:
            return None
        descriptor, number = words.split()
        connection = socket.socket(fileno=int(descriptor))
        connection.set_inheritable(False)
        return cls(connection, int(number))

    def start(
        self, *, ready: Callable[[], bool], orders: Mapping[bytes, Callable[[], None]], stop: Callable[[], None]
    ) -> None:
        """Report to the parent once the worker is ready, and follow its orders from now on.

        Arguments:
            orders: by the line of the parent's.
            stop: called when the parent is gone.
        """
        self._ready, self._orders, self._stop = ready, orders, stop
        self._reported = False
        start_thread("penstock parent", self._run, self._stopping)

    def ask_for_successor(self) -> None:
        self._send(RENEW)

    def close(self) -> None:
        """Follow no more orders. The socket stays open: its end would mean that the process has ended."""
        self._stopping.set()

    def _run(self) -> None:
        while not self._stopping.is_set():
            if not self._reported and self._ready():
                self._send(READY)
                self._reported = True
            readable, _, _ = select.select([self._socket], [], [], _IDLE_SECONDS if self._reported else _READY_SECONDS)
            if readable and not self._follow():
                self._stopping.set()
                self._stop()

    def _follow(self) -> bool:
        """Follow the orders that have come. False: the parent is gone."""
        try:
            data = self._socket.recv(4096)
        except ConnectionError:
            return False
        *lines, self._received = (self._received + data).split(b"\n")
        for line in lines:
            if line in self._orders:
                self._orders[line]()
        return bool(data)

    def _send(self, line: bytes) -> None:
        with contextlib.suppress(OSError):  # the parent is gone, which the reader finds
            self._socket.sendall(line + b"\n")
