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
from collections.abc import Callable, Iterator
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


class TooLarge(ValueError):
    """A message or a result is larger than a worker takes."""


class WorkerEnd(asyncio.Protocol):
    """The end that a worker's loop reads and writes, never waiting for the child.

    Arguments:
        on_message: called with the JSON of each message, and that of its result, neither of them read yet. What it
            raises closes this end.
        on_close: called once, when nothing more comes, with the error that ended it; None: the child closed its end.

    Attributes:
        closed: done when nothing more comes.
    """

    def __init__(
        self, on_message: Callable[[bytes, bytes], None], on_close: Callable[[Exception | None], None]
    ) -> None:
        self._on_message, self._on_close = on_message, on_close
        self._buffer = bytearray()
        self._paused = self._lost = False
        self._transport: Any = None
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def open(self, connection: socket.socket) -> None:
        await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=connection)

    def send(self, message: Message) -> None:
        """Send a message of any size; one to a child that has died is lost."""
        body = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        self._transport.write(_TO_CHILD.pack(len(body)) + body)

    def pause(self) -> None:
        """Take no messages until `resume`."""
        self._paused = True
        if not self._lost:
            self._transport.pause_reading()

    def resume(self) -> None:
        if not self._paused or self.closed.done():
            return
        self._paused = False
        if not self._lost:
            self._transport.resume_reading()
        self._read()

    def close(self) -> None:
        self._transport.abort()
        self._end(None)

    # Called by the loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if not self.closed.done():
            self._buffer += data
            self._read()

    def connection_lost(self, error: Exception | None) -> None:
        self._lost = True
        self._read()

    def _read(self) -> None:
        buffer, start = self._buffer, _TO_WORKER.size
        try:
            while not self._paused and not self.closed.done() and len(buffer) >= start:
                sizes = _TO_WORKER.unpack_from(buffer)
                _check_sizes(*sizes)
                middle, end = start + sizes[0], start + sum(sizes)
                if len(buffer) < end:
                    break
                body, result = bytes(buffer[start:middle]), bytes(buffer[middle:end])
                del buffer[:end]
                self._on_message(body, result)
        except Exception as error:
            self._end(error)
        if self._lost and not self._paused:
            self._end(None)

    def _end(self, error: Exception | None) -> None:
        if not self.closed.done():
            self.closed.set_result(None)
            self._on_close(error)


class ChildEnd:
    """The end that a child reads and writes, from any of its threads.

    Attributes:
        pid: the process that may use it. The bytes of a process forked off it would get between those of another.
        pending: an error to raise in the main thread when it does not use the pipe any more.
    """

    pending: BaseException | None = None

    def __init__(self, connection: socket.socket) -> None:
        self.pid = os.getpid()
        self._connection = connection
        self._reader = connection.makefile("rb")
        self._depth = 0
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
        with self.uninterrupted(), self._sending:
            self._connection.sendall(data)

    def answer(self, answer: Message) -> None:
        """Send the answer to a request, with the JSON of its `result`. Raises as `send`."""
        result = answer.pop("result", None) or ""
        self.send({"answer": answer}, result)

    @contextlib.contextmanager
    def uninterrupted(self) -> Iterator[None]:
        """Keep `raise_soon` from cutting the block off: half a message would make all that follow unreadable."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if not self._depth and self.pending is not None:
                error, self.pending = self.pending, None
                raise error

    def raise_soon(self, error: BaseException) -> None:
        """Raise an error in the main thread: now, or when it does not use the pipe any more. In a signal's handler."""
        if not self._depth:
            raise error
        self.pending = error

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
