"""The pipe between a worker and a child: pickled messages, each after its length."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import socket
import struct
import threading
from typing import Any

Message = dict[str, Any]

_LENGTH = struct.Struct("!Q")
_BUFFER_BYTES = 2**20


def _pack(message: Message) -> bytes:
    body = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(body)) + body


class WorkerEnd:
    """The end that a worker's loop reads and writes, never waiting for the child."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, connection: socket.socket) -> WorkerEnd:
        return cls(*await asyncio.open_unix_connection(sock=connection, limit=_BUFFER_BYTES))

    def send(self, message: Message) -> None:
        """Send a message of any size; one to a child that has died is lost."""
        self._writer.write(_pack(message))

    async def receive(self) -> Message | None:
        """The next message; None: the child has closed its end.

        Raises:
            Exception: the message cannot be unpickled.
        """
        try:
            (length,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
            body = await self._reader.readexactly(length)
        except (EOFError, OSError):
            return None
        message: Message = pickle.loads(body)  # noqa: S301  # from our own child
        return message

    def close(self) -> None:
        self._writer.transport.abort()


class ChildEnd:
    """The end that a child reads and writes, from any of its threads.

    Attributes:
        pid: the process that may use it. The bytes of a process forked off it would get between those of another.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.pid = os.getpid()
        self._connection = connection
        self._reader = connection.makefile("rb")
        self._sending = threading.RLock()  # a signal's handler may log while its own thread sends

    def send(self, message: Message) -> None:
        """Send a message, waiting until the worker has room for it.

        Raises:
            RuntimeError: this is another process than the handler's.
            OSError: the worker is gone.
        """
        if os.getpid() != self.pid:
            raise RuntimeError("the context belongs to the handler's process; a process that it started cannot use it")
        data = _pack(message)
        with self._sending:
            self._connection.sendall(data)

    def receive(self) -> Message | None:
        """The next message, waiting for it; None: the worker is gone."""
        header = self._reader.read(_LENGTH.size)
        if len(header) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack(header)
        body = self._reader.read(length)
        if len(body) < length:
            return None
        message: Message = pickle.loads(body)  # noqa: S301  # from our own worker
        return message

    def stop_receiving(self) -> None:
        """End a `receive` that waits, as if the worker were gone. From any thread."""
        with contextlib.suppress(OSError):  # the worker is gone
            self._connection.shutdown(socket.SHUT_RD)
