"""Send requests to an HTTP server as fast as it answers, over many connections.

`python -m benchmarks.programs.http_load PORT COUNT` prints JSON: the `seconds` that they took. `BENCH_KEY` is sent as
the bearer's token.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time

CONNECTIONS = 32
PATH = "/v1/jobs/bench.invoice"
BODY = b'{"invoice_id": 7, "to": "ada@example.com"}'


def request() -> bytes:
    head = (
        f"POST {PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {os.environ['BENCH_KEY']}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(BODY)}\r\n\r\n"
    )
    return head.encode() + BODY


async def main(port: int, count: int) -> None:
    text = request()
    left = count

    async def send_requests() -> None:
        nonlocal left
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while left > 0:
            left -= 1
            writer.write(text)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            if not head.startswith(b"http/1.1 202 "):
                raise SystemExit(f"answered: {head.decode()}")
            await reader.readexactly(int(head.partition(b"content-length:")[2].partition(b"\r\n")[0]))
        writer.close()

    began = time.perf_counter()
    await asyncio.gather(*(send_requests() for _ in range(CONNECTIONS)))
    print(json.dumps({"seconds": time.perf_counter() - began}))


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
