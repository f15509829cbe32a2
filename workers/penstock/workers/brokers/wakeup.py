"""Wakeups: another thread ends a wait for a socket."""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Sequence
from typing import Any


class Wakeup:
    """A pair of sockets: `set` writes to one, and a thread that waits on the other returns."""

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)

    def set(self) -> None:
        """From any thread, and after `close`."""
        with contextlib.suppress(OSError):  # full: it is set already; closed: no thread waits
            self._writer.send(b"\0")

    def wait(self, sockets: Sequence[Any], timeout_seconds: float) -> tuple[bool, bool]:
        """Wait for data or for `set`. Returns whether data is there, and whether it was set; resets the latter."""
        poll = select.poll()  # select() knows no descriptor past 1023
        for waited in (self._reader, *sockets):
            if waited.fileno() < 0:
                return True, True  # closed by another thread
            poll.register(waited, select.POLLIN)
        ready = {descriptor for descriptor, _ in poll.poll(max(0.0, timeout_seconds) * 1000)}
        woken = self._reader.fileno() in ready
        if woken:
            with contextlib.suppress(OSError):
                self._reader.recv(4096)
        return bool(ready - {self._reader.fileno()}), woken

    def close(self) -> None:
        self._reader.close()
        self._writer.close()


def readable(waited: Any) -> bool:
    """Whether a socket has data, or its end, to read."""
    poll = select.poll()
    poll.register(waited, select.POLLIN)
    return bool(poll.poll(0))
