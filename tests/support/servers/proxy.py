"""A TCP proxy between a test's processes and a server, which cuts and refuses connections on demand."""

from __future__ import annotations

import asyncio
import contextlib
import threading

from penstock.workers.local.up.redis_server import free_port

_TURN_SECONDS, _TURNS = 0.05, 20


class Proxy:
    """Forwards 127.0.0.1:`port` to another port on 127.0.0.1, in a thread of its own."""

    def __init__(self, target: int) -> None:
        self.port, self._target = free_port(), target
        self.silent = False
        """Whether to cut a connection when the server answers, in place of the answer."""
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self.restore()

    def cut(self) -> None:
        """Drop every connection, and refuse new ones until `restore`."""
        asyncio.run_coroutine_threadsafe(self._cut(), self._loop).result(30)

    def restore(self) -> None:
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(30)

    def close(self) -> None:
        self.cut()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._forward, "127.0.0.1", self.port)

    async def _cut(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        await _turn()  # connections accepted just now are known by then
        for writer in self._writers:
            writer.transport.abort()
        while self._tasks:
            await asyncio.wait(set(self._tasks))
        await _turn()  # aborted connections are closed by then

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        other = None
        try:
            if self._server is not None:
                there, other = await asyncio.open_connection("127.0.0.1", self._target)
                self._writers.add(other)
                await asyncio.gather(_copy(reader, other), self._answer(there, writer))
        except OSError:
            pass  # the server is down: so are we
        finally:
            for end in filter(None, (writer, other)):
                end.transport.abort()
                self._writers.discard(end)
            self._tasks.discard(task)

    async def _answer(self, there: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while (data := await there.read(65536)) and not self.silent:
                writer.write(data)
                await writer.drain()
        writer.transport.abort()


async def _turn() -> None:
    """Let the loop do what is due. A busy machine may take longer for that than the pause."""
    await asyncio.sleep(_TURN_SECONDS)
    for _ in range(_TURNS):
        await asyncio.sleep(0)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.transport.abort()
