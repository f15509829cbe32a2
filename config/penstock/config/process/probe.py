"""`penstock probe`: asks the workers and dispatchers of this machine whether they make progress, or take jobs.

Each of them listens on a Unix socket, and answers a line, `state`, with one line of JSON. This module runs in images
without curl, often, and with a short time limit: it imports no other part of Penstock, and little of the library.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator, Sequence
from typing import Any

ROLES = ("worker", "dispatcher")
QUESTIONS = ("live", "ready")
TIMEOUT_SECONDS = 2.0
"""A process that does not answer for so long is not well, whatever holds it."""


def folders() -> list[str]:
    """Folders for the sockets of this user's processes, the preferred one first."""
    user = os.getuid()
    parents = (os.environ.get("XDG_RUNTIME_DIR"), os.environ.get("TMPDIR"), "/tmp", f"/run/user/{user}")  # noqa: S108
    return list(dict.fromkeys(os.path.join(parent, f"penstock-{user}") for parent in parents if parent))


def is_private(folder: str) -> bool:
    """Whether the folder is this user's, and closed to others: another could put a socket there that lies."""
    try:
        status = os.lstat(folder)
    except OSError:
        return False
    return os.path.isdir(folder) and status.st_uid == os.geteuid() and status.st_mode & 0o077 == 0


def ask(timeout_seconds: float = TIMEOUT_SECONDS) -> list[dict[str, Any]]:
    """The answers of all processes. Sockets that no process listens on any more are removed.

    Returns:
        For each process `pid`, `name`, `role`, `prefix`, `group` (the process id of the parent of several, or None),
        `live`, `ready` and `started`; the last three are None, or say why not. One that does not answer has only `pid`,
        and reasons.
    """
    return [_process(pid, text) for pid, text in exchange(b"state", timeout_seconds)]


def exchange(question: bytes, timeout_seconds: float = TIMEOUT_SECONDS) -> list[tuple[int | None, bytes]]:
    """Ask all processes. Returns the pid of each and its answer, which is empty or cut off where it did not come."""
    deadline = time.monotonic() + timeout_seconds
    connections = [(path, connection) for path in _sockets() if (connection := _connect(path)) is not None]
    for _, connection in connections:
        with contextlib.suppress(OSError):  # one whose queue is full
            connection.sendall(question + b"\n")
    return [(_pid(path), _answer(connection, deadline)) for path, connection in connections]


def probe(
    question: str,
    *,
    name: str | None = None,
    pid: int | None = None,
    role: str | None = None,
    prefix: str | None = None,
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> tuple[bool, list[str]]:
    """Whether all processes are well, and lines that say so, or which are not.

    Arguments:
        question: `live` or `ready`.
        name, pid, role, prefix: of the processes that are meant. One that does not answer is meant unless its pid says
            otherwise: no one can know whose it is.
    """
    conditions = {"name": name, "pid": pid, "role": role, "prefix": prefix}
    meant = [process for process in ask(timeout_seconds) if _is_meant(process, conditions)]
    if not meant:
        which = ", ".join(f"{key} {value}" for key, value in conditions.items() if value is not None)
        return False, [f"no worker or dispatcher of this user runs here{f' with {which}' if which else ''}"]
    lines = []
    for process in meant:
        reason = process[question]
        who = f"{process.get('role', 'process')} {process.get('name', '')}".rstrip()
        lines.append(f"{who} (pid {process['pid']}): {question if reason is None else f'not {question}: {reason}'}")
    return all(process[question] is None for process in meant), lines


def main(arguments: Sequence[str]) -> int:
    """The command line. Returns the exit code: 0 if all are well, 1 if not, or if there is none."""
    import argparse

    parser = argparse.ArgumentParser("penstock probe", description="Ask the workers and dispatchers of this machine.")
    parser.add_argument("question", choices=QUESTIONS)
    parser.add_argument("--name", help="Only the process with this name.")
    parser.add_argument("--pid", type=int, help="Only this process.")
    parser.add_argument("--role", choices=ROLES, help="Only these.")
    parser.add_argument(
        "--prefix", default=os.environ.get("PENSTOCK_PREFIX"), help="Only those of this installation (PENSTOCK_PREFIX)."
    )
    parser.add_argument("--timeout", type=float, default=TIMEOUT_SECONDS, help="Seconds to wait for the answers.")
    options = parser.parse_args(arguments)
    return run(
        options.question,
        name=options.name,
        pid=options.pid,
        role=options.role,
        prefix=options.prefix,
        timeout_seconds=options.timeout,
    )


def run(question: str, **options: Any) -> int:
    """Print what `probe` returns. Returns the exit code."""
    good, lines = probe(question, **options)
    print("\n".join(lines))  # noqa: T201  # the answer of a command
    return 0 if good else 1


def remove_stale() -> None:
    """Remove the sockets of processes that were killed."""
    for path in _sockets():
        if (connection := _connect(path)) is not None:
            connection.close()


def _sockets() -> Iterator[str]:
    for folder in folders():
        if is_private(folder):
            yield from (os.path.join(folder, name) for name in sorted(os.listdir(folder)) if name.endswith(".sock"))


def _connect(path: str) -> socket.socket | None:
    """A connection to a process; None: it has ended. One whose queue is full is returned, and does not answer."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.setblocking(False)
    try:
        connection.connect(path)
    except ConnectionRefusedError:
        connection.close()
        with contextlib.suppress(OSError):
            os.unlink(path)
        return None
    except BlockingIOError:
        return connection
    except OSError:  # gone meanwhile
        connection.close()
        return None
    return connection


def _pid(path: str) -> int | None:
    number = os.path.basename(path).partition("-")[0]
    return int(number) if number.isdigit() else None


def _answer(connection: socket.socket, deadline: float) -> bytes:
    data = b""
    with connection, contextlib.suppress(OSError):
        while True:
            connection.settimeout(max(deadline - time.monotonic(), 0.001))
            part = connection.recv(65536)
            if not part:
                break
            data += part
    return data


def _process(pid: int | None, text: bytes) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = json.loads(text)
    except ValueError:
        reason = "it does not answer"
        return {"pid": pid, "live": reason, "ready": reason, "started": reason}
    return answer


def _is_meant(process: dict[str, Any], conditions: dict[str, Any]) -> bool:
    for key, value in conditions.items():
        if value is None or key not in process:
            continue
        # `--name shop` is the worker that was started so; its name in the ledger has its engine's name in front.
        if process[key] != value and not (key == "name" and process[key].partition("@")[2] == value):
            return False
    return True
