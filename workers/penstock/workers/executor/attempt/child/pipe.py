"""The pipe between a worker and a child. The worker sends pickles, and takes nothing but JSON.

A child runs what a job has brought, so it may be taken over: nothing that it writes can make its worker run code, or
take more memory than a message may have.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import socket
import struct
import threading
from typing import Any

from pydantic_core import to_json

Message = dict[str, Any]

LONGEST_MESSAGE = 32 * 2**20
"""Bytes of a child's message, without the result."""
LONGEST_RESULT = 128 * 2**20
"""Bytes of a result."""

_TO_CHILD = struct.Struct("!Q")
_TO_WORKER = struct.Struct("!II")
"""Bytes of the message, and of the result that follows it."""
_BUFFER_BYTES = 2**20


class TooLarge(ValueError):
    """A message or a result is larger than a worker takes."""


class WorkerEnd:
    """The end that a worker's loop reads and writes, never waiting for the child."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, connection: socket.socket) -> WorkerEnd:
        return cls(*await asyncio.open_unix_connection(sock=connection, limit=_BUFFER_BYTES))

    def send(self, message: Message) -> None:
        """Send a message of any size; one to a child that has died is lost."""
        body = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        self._writer.write(_TO_CHILD.pack(len(body)) + body)

    async def receive(self) -> tuple[bytes, str] | None:
        """The JSON of the next message and of its result, neither of them read yet; None: the child has closed its end.

        Raises:
            TooLarge: the child announces more than it may send.
            UnicodeDecodeError: the result is not text.
        """
        try:
            sizes = _TO_WORKER.unpack(await self._reader.readexactly(_TO_WORKER.size))
            _check_sizes(*sizes)
            body, result = [await self._reader.readexactly(size) for size in sizes]
        except (EOFError, OSError):
            return None
        return body, result.decode()

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

    def send(self, message: Message, result: str = "") -> None:
        """Send a message, waiting until the worker has room for it.

        Arguments:
            message: of values that JSON can hold.
            result: JSON already.

        Raises:
            RuntimeError: this is another process than the handler's.
            TooLarge: its worker would not take it.
            OSError: the worker is gone.
        """
        if os.getpid() != self.pid:
            raise RuntimeError("the context belongs to the handler's process; a process that it started cannot use it")
        data = pack(message, result)
        with self._sending:
            self._connection.sendall(data)

    def receive(self) -> Message | None:
        """The next message, waiting for it; None: the worker is gone."""
        header = self._reader.read(_TO_CHILD.size)
        if len(header) < _TO_CHILD.size:
            return None
        (length,) = _TO_CHILD.unpack(header)
        body = self._reader.read(length)
        if len(body) < length:
            return None
        message: Message = pickle.loads(body)  # noqa: S301  # from our own worker
        return message

    def stop_receiving(self) -> None:
        """End a `receive` that waits, as if the worker were gone. From any thread."""
        with contextlib.suppress(OSError):  # the worker is gone
            self._connection.shutdown(socket.SHUT_RD)


def pack(message: Message, result: str = "") -> bytes:
    """The bytes of a message to the worker, with the JSON of a result. Raises TooLarge."""
    body, tail = to_json(message), result.encode()
    _check_sizes(len(body), len(tail))
    return _TO_WORKER.pack(len(body), len(tail)) + body + tail


def _check_sizes(message: int, result: int) -> None:
    if message > LONGEST_MESSAGE:
        raise TooLarge(f"a message of {message:,} bytes; a worker takes {LONGEST_MESSAGE:,}")
    if result > LONGEST_RESULT:
        raise TooLarge(f"a result of {result:,} bytes; a worker takes {LONGEST_RESULT:,}, so put it into the storage")
