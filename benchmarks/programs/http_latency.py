"""Post to several paths of a local server in turn, over one connection.

`python -m benchmarks.programs.http_latency PORT COUNT PATH…` prints JSON: for each path the seconds of each request. In
turn, so that other work of the machine hits all paths alike; one at a time, so that no request waits for another.
"""

from __future__ import annotations

import json
import socket
import sys
import time

BODY = b'{"number": 7, "text": "twenty-four characters.."}'
WARM_UP = 200


def main(port: int, count: int, paths: list[str]) -> None:
    seconds: dict[str, list[float]] = {path: [] for path in paths}
    requests = {path: _request(path) for path in paths}
    with socket.create_connection(("127.0.0.1", port), 30) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for number in range(count + WARM_UP):
            for path, request in requests.items():
                began = time.perf_counter()
                connection.sendall(request)
                _read_answer(connection, path)
                if number >= WARM_UP:
                    seconds[path].append(time.perf_counter() - began)
    print(json.dumps(seconds), flush=True)


def _request(path: str) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(BODY)}"
    return head.encode() + b"\r\n\r\n" + BODY


def _read_answer(connection: socket.socket, path: str) -> None:
    answer = b""
    while (end := answer.find(b"\r\n\r\n")) < 0 or len(answer) < end + 4 + _length(answer[:end]):
        if not (data := connection.recv(65536)):
            raise ConnectionError(f"{path}: the server closed the connection")
        answer += data
    if not answer.startswith(b"HTTP/1.1 200"):
        raise ValueError(f"{path}: {answer[:500]!r}")


def _length(head: bytes) -> int:
    [line] = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return int(line.split(b":")[1])


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
