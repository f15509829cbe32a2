"""Send jobs from a contestant's own environment: `python -m benchmarks.programs.send APP MODE COUNT`. Prints JSON.

Modes: `fill`, as fast as it can, untimed; `loop`, one by one; `many`, in calls of a thousand; `paced`, 100 a second,
each job's number being the time it was sent at.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

TEXT = "twenty-four characters.."
CHUNK = 1000
WARM_UP = 50
RATE = 100


async def _call(function: Callable[..., Any], *arguments: Any) -> None:
    value = function(*arguments)
    if inspect.isawaitable(value):
        await value


async def fill(app: Any, count: int) -> None:
    if hasattr(app, "many"):
        for chunk in _chunks(count):
            await _call(app.many, chunk)
    elif inspect.iscoroutinefunction(app.enqueue):
        for start in range(0, count, 20):
            await asyncio.gather(*(app.enqueue(number, TEXT) for number in range(start, min(start + 20, count))))
    else:
        for number in range(count):
            app.enqueue(number, TEXT)


async def loop(app: Any, count: int) -> None:
    enqueue = app.enqueue
    if inspect.iscoroutinefunction(enqueue):
        for number in range(count):
            await enqueue(number, TEXT)
    else:
        for number in range(count):
            enqueue(number, TEXT)


async def many(app: Any, count: int) -> None:
    for chunk in _chunks(count):
        await _call(app.many, chunk)


async def paced(app: Any, count: int) -> None:
    begin = time.monotonic()
    for number in range(count):
        wait = begin + number / RATE - time.monotonic()
        if wait > 0:
            await asyncio.sleep(wait)
        await _call(app.enqueue, time.monotonic_ns(), TEXT)


def _chunks(count: int) -> Iterator[list[tuple[int, str]]]:
    for start in range(0, count, CHUNK):
        yield [(number, TEXT) for number in range(start, min(start + CHUNK, count))]


MODES: dict[str, Callable[[Any, int], Awaitable[None]]] = {"fill": fill, "loop": loop, "many": many, "paced": paced}


async def _main(name: str, mode: str, count: int) -> None:
    app = importlib.import_module(f"benchmarks.{name}")
    if hasattr(app, "connect"):
        await _call(app.connect)
    if mode in ("loop", "many"):
        await loop(app, WARM_UP)
    cpu, begin = time.process_time(), time.perf_counter()
    await MODES[mode](app, count)
    seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu}), flush=True)


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
    sys.stdout.flush()
    os._exit(0)  # ArdiQ's extension may crash an interpreter that ends; its own command leaves so too
