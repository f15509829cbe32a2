"""Redis protocol (RESP): packing commands, and reading their replies on a connection of redis-py."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any

_AT_A_TIME = 50
"""Replies that come within one timeout of asyncio."""
Reply = Any
"""Reply of Redis: bytes, int, None, a list of these, or the ResponseError of a refused command."""


_ADVICE = {
    "OutOfMemoryError": "it is at its maxmemory: workers make room as jobs end, or raise maxmemory",
    "ReadOnlyError": "it is a replica: use the master's address, or redis+sentinel://…?master=NAME",
    "BusyLoadingError": "it has just started, and takes commands once its data are loaded",
}


def explain(error: Exception) -> str:
    """Answer of Redis and what to do about it; redis-py leaves out the code in front of its errors."""
    advice = _ADVICE.get(type(error).__name__)
    return f"{error} ({advice})" if advice else str(error)


def pack(*arguments: bytes | str | int) -> bytes:
    """Pack a command in the Redis protocol (RESP)."""
    parts = [b"*%d\r\n" % len(arguments)]
    for argument in arguments:
        data = argument if isinstance(argument, bytes) else str(argument).encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(parts)


def exchange(
    connection: Any,
    packed: bytes,
    replies: int,
    refused: type[Exception],
    before_reading: Callable[[], None] | None = None,
) -> list[Reply]:
    result: list[Reply] = []
    try:
        connection.send_packed_command((packed,), check_health=False)
        if before_reading is not None:
            before_reading()
        read = connection.read_response
        for _ in range(replies):
            try:
                result.append(read())
            except refused as error:
                _reject_replica(error)
                result.append(error)
    except BaseException:
        connection.disconnect()
        raise
    return result


def _reject_replica(error: Exception) -> None:
    """Count the connections to a demoted master, which refuses writes, as closed ones."""
    from redis import exceptions

    if isinstance(error, exceptions.ReadOnlyError) or "READONLY" in str(error):  # the latter out of a script on 6.2
        raise exceptions.ConnectionError(f"refused: {explain(error)}") from error


async def exchange_async(connection: Any, packed: bytes, replies: int, refused: type[Exception]) -> list[Reply]:
    result: list[Reply] = []
    try:
        await connection.send_packed_command((packed,), check_health=False)
        while len(result) < replies:
            # redis-py's own timeout, one for each reply, takes as long as reading it does.
            async with asyncio.timeout(connection.socket_timeout):
                for _ in range(min(replies - len(result), _AT_A_TIME)):
                    try:
                        result.append(await connection.read_response(timeout=math.inf))
                    except refused as error:
                        _reject_replica(error)
                        result.append(error)
    except TimeoutError as error:
        from redis import exceptions

        await connection.disconnect(nowait=True)
        raise exceptions.TimeoutError(f"no reply within {connection.socket_timeout:g} s") from error
    except BaseException:  # a cancelled task too: no one will read the replies still under way
        await connection.disconnect(nowait=True)
        raise
    return result
