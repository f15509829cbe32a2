"""The process that renews leases on Redis while a handler blocks the threads of its worker.

Run as a script by `lease_keeper.KeeperProcess`, with few modules of the standard library, to stay small. Its standard
input is a socket of messages: the state of a worker, which sends it whenever it has renewed its leases itself. It
renews only while those fail to come, for any number of workers, and ends when all have closed the socket or died.
"""

from __future__ import annotations

import marshal
import os
import select
import time

# Not the module `signal`, which would be half a megabyte.
from _signal import SIG_IGN, SIGHUP, SIGINT, SIGTERM, signal  # type: ignore[import-not-found]

TYPE_CHECKING = False
if TYPE_CHECKING:  # neither is loaded while it only waits: a megabyte
    import socket
    from typing import Any

MESSAGE_BYTES = 1 << 18
STARTED = 19
"""Index of the time of the start among the fields of `/proc/…/stat` after the name."""
_SUSPENDED, _DEAD = "Tt", "ZX"
"""States of processes: others may take over the jobs of such a worker. A suspended one may continue."""
_LOOK_SECONDS = 30.0
"""Between looks for an owner that has died while another process keeps the socket open."""

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
    # The signals that end a worker let it drain first; this ends after it.
    for number in (SIGINT, SIGTERM, SIGHUP):
        signal(number, SIG_IGN)
    owner = os.getppid()
    workers: dict[str, dict[str, Any]] = {}
    due: dict[str, float] = {}
    """When to look at a worker, if it stays silent."""
    while workers or os.getppid() == owner:
        wait = min([_LOOK_SECONDS, *(at - time.monotonic() for at in due.values())])
        if select.select([0], [], [], max(wait, 0.0))[0]:
            if not (message := os.read(0, MESSAGE_BYTES)):
                return
            options = marshal.loads(message)  # noqa: S302  # a worker of ours wrote it
            name = options["name"]
            workers[name], due[name] = options, time.monotonic() + options["lease_seconds"] / 2
            if not options["lanes"]:
                del workers[name], due[name]
            continue  # all messages come first: who has sent one is not silent
        for name in [name for name, at in due.items() if at <= time.monotonic()]:
            state, pause = _state(workers[name]), workers[name]["lease_seconds"] / 3
            if state in _DEAD:
                del workers[name], due[name]
                continue
            if state not in _SUSPENDED:
                try:
                    renew(workers[name])
                except OSError:
                    pause /= 3  # Redis is unavailable: try again sooner
            due[name] = time.monotonic() + pause


def _state(worker: dict[str, Any]) -> str:
    """State of a worker's process, as `/proc` has it; of one that is gone, also where another has its id now, `X`."""
    try:
        with open(f"/proc/{worker['pid']}/stat", "rb") as stat:
            fields = stat.read().rpartition(b")")[2].decode().split()
    except (FileNotFoundError, ProcessLookupError):
        return "X"
    except OSError:  # the system is short of descriptors
        return "T"
    return fields[0] if fields[STARTED] == worker["started"] else "X"


def renew(options: dict[str, Any]) -> None:
    """Renew on a connection of its own, which is closed again: it is seldom needed. Raises OSError."""
    commands: list[tuple[bytes | str | int, ...]] = []
    if options["password"] is not None:
        commands.append(("AUTH", *filter(None, (options["username"],)), options["password"]))
    if options["db"]:
        commands.append(("SELECT", options["db"]))
    commands += [("EVAL", RENEW, 1, lane, options["group"], options["name"]) for lane in options["lanes"]]
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
