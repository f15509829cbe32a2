"""The process that renews a worker's leases on Redis while a handler blocks the worker's own threads.

Run as a script by `lease_keeper.LeaseKeeper`, with the standard library alone, to stay small. It reads its standard
input: its options as a line of JSON, then a line for each lane, and an empty line whenever the worker has renewed its
leases itself. It renews only while those fail to come, and ends when the worker has closed the pipe or died.
"""

from __future__ import annotations

import json
import os
import select
import signal
import time

TYPE_CHECKING = False
if TYPE_CHECKING:  # neither is loaded while it only waits: a megabyte
    import socket
    from typing import Any

_STOPPED = "TtZX"  # suspended, traced, dead: others may take over the jobs of such a worker

# Renews all that is pending under the worker's name, so nothing that another has taken over.
RENEW = """
local start, done = '-', 0
while true do
  local found = redis.pcall('XPENDING', KEYS[1], ARGV[1], start, '+', 1000, ARGV[2])
  if found.err or #found == 0 then return done end
  local claim = {'XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0}
  for _, entry in ipairs(found) do claim[#claim + 1] = entry[1] end
  for _, option in ipairs({'IDLE', 0, 'JUSTID'}) do claim[#claim + 1] = option end
  redis.call(unpack(claim))
  start, done = '(' .. found[#found][1], done + #found
end
"""


def main() -> None:
    # The signals that end the worker let it drain first; this ends after it.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    pipe = _Lines(0)
    lanes: list[bytes] = []
    while not lanes:
        if (lines := pipe.read(None)) is None:
            return
        lanes += lines
    options = json.loads(lanes.pop(0))
    pause = options["lease_seconds"] / 3
    quiet_until = time.monotonic() + 1.5 * pause
    while (lines := pipe.read(quiet_until - time.monotonic())) is not None and os.getppid() == options["pid"]:
        lanes += [line for line in lines if line]
        if lines:
            quiet_until = time.monotonic() + 1.5 * pause
        elif time.monotonic() >= quiet_until:
            quiet_until = time.monotonic() + pause
            if _runs(options["pid"]):
                try:
                    renew(options, lanes)
                except OSError:
                    quiet_until = time.monotonic() + pause / 3  # Redis is unavailable: try again sooner


class _Lines:
    """Reads a pipe line by line."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._rest = descriptor, b""

    def read(self, timeout_seconds: float | None) -> list[bytes] | None:
        """The lines that are there, waiting for the first; none after the timeout. None: the pipe is closed."""
        wait = None if timeout_seconds is None else max(timeout_seconds, 0.0)
        if not select.select([self._descriptor], [], [], wait)[0]:
            return []
        if not (data := os.read(self._descriptor, 65536)):
            return None
        *lines, self._rest = (self._rest + data).split(b"\n")
        return lines


def _runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            return stat.read().rpartition(b")")[2].split()[0].decode() not in _STOPPED
    except OSError:
        return False


def renew(options: dict[str, Any], lanes: list[bytes]) -> None:
    """Renew on a connection of its own, which is closed again: it is seldom needed. Raises OSError."""
    commands: list[tuple[bytes | str | int, ...]] = []
    if options["password"] is not None:
        commands.append(("AUTH", *filter(None, (options["username"],)), options["password"]))
    if options["db"]:
        commands.append(("SELECT", options["db"]))
    commands += [("EVAL", RENEW, 1, lane, options["group"], options["name"]) for lane in lanes]
    with _connect(options) as connection:
        connection.sendall(b"".join(map(_pack, commands)))
        answers = connection.makefile("rb")
        for _ in commands:  # each is one line: a status, an error or a number
            if not answers.readline().endswith(b"\n"):
                raise OSError("Redis closed the connection")


def _pack(command: tuple[bytes | str | int, ...]) -> bytes:
    parts = [part if isinstance(part, bytes) else str(part).encode() for part in command]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)


def _connect(options: dict[str, Any]) -> socket.socket:
    import socket

    if options["path"]:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(options["timeout_seconds"])
        connection.connect(options["path"])
        return connection
    connection = socket.create_connection((options["host"], options["port"]), options["timeout_seconds"])
    tls = options["tls"]
    if tls is None:
        return connection
    import ssl

    context = ssl.create_default_context(cafile=tls["cafile"], capath=tls["capath"])
    context.check_hostname = tls["check_hostname"] and tls["verify"]
    context.verify_mode = ssl.CERT_REQUIRED if tls["verify"] else ssl.CERT_NONE
    if tls["certfile"]:
        context.load_cert_chain(tls["certfile"], tls["keyfile"])
    return context.wrap_socket(connection, server_hostname=options["host"])


if __name__ == "__main__":
    main()
