"""`ProbeSocket`: answers `penstock probe` on a Unix socket, also without a port."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import socket
import threading
from collections.abc import Callable
from typing import Any

from penstock.config.process.probe import folders, is_private, remove_stale
from penstock.config.supervision import start_thread

log = logging.getLogger("penstock.probe")

_SEND_SECONDS = 1.0


class ProbeSocket:
    """A socket in a folder of this user's alone.

    Arguments:
        answer: what to say, as of now. Called in a thread of its own, as the next is.
        metrics: the process's metrics as text, for the question `metrics`; None: it has none.
    """

    def __init__(self, answer: Callable[[], dict[str, Any]], metrics: Callable[[], bytes] | None = None) -> None:
        self._answer, self._metrics = answer, metrics
        self._path = ""
        self._listener: socket.socket | None = None
        self._stopping = threading.Event()

    def start(self) -> None:
        """Listen. A process that cannot goes on without: a read-only system may have no place for a socket."""
        problems = []
        for folder in folders():
            try:
                self._listener = self._listen(folder)
                break
            except OSError as error:
                problems.append(f"{folder}: {error.strerror or error}")
        else:
            log.warning("penstock probe cannot ask this process: no socket in %s", "; ".join(problems))
            return
        with contextlib.suppress(OSError):
            remove_stale()
        start_thread("penstock probe", self._run, self._stopping, vital=False)

    def close(self) -> None:
        """Listen no more."""
        self._stopping.set()
        if self._listener is None:
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as wakeup:
            wakeup.settimeout(_SEND_SECONDS)
            wakeup.connect(self._path)
        with contextlib.suppress(OSError):
            os.unlink(self._path)
            remove_stale()
            os.rmdir(os.path.dirname(self._path))  # the last process leaves nothing behind

    def _listen(self, folder: str) -> socket.socket:
        self._path = os.path.join(folder, f"{os.getpid()}-{secrets.token_hex(2)}.sock")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            try:
                self._bind(listener, folder)
            except FileNotFoundError:  # the last of the other processes has just ended, and removed the folder
                self._bind(listener, folder)
            listener.listen(16)
            # Under its name only now: a socket that nothing listens on counts as that of a dead process.
            os.rename(f"{self._path}.new", self._path)
        except OSError:
            listener.close()
            raise
        return listener

    def _bind(self, listener: socket.socket, folder: str) -> None:
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder, 0o700)
        if not is_private(folder):
            raise PermissionError(f"{folder} is not for its owner alone")
        listener.bind(f"{self._path}.new")
        os.chmod(f"{self._path}.new", 0o600)

    def _run(self) -> None:
        assert self._listener is not None
        while not self._stopping.is_set():
            connection, _ = self._listener.accept()
            with connection, contextlib.suppress(OSError):
                connection.settimeout(_SEND_SECONDS)
                connection.sendall(self._reply(_question(connection)))
        self._listener.close()

    def _reply(self, question: bytes) -> bytes:
        if question == b"metrics":
            return b"" if self._metrics is None else self._metrics()
        return json.dumps(self._answer()).encode() + b"\n"


def _question(connection: socket.socket) -> bytes:
    """The line that was asked; empty where none came in time, as from a probe of an older version."""
    try:
        return connection.recv(64).strip()
    except TimeoutError:
        return b""
