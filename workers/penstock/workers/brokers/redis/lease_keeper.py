"""Keeps a worker's leases on Redis alive while one of its handlers holds the interpreter (the GIL).

A regular expression that backtracks for minutes, or an extension that does not release it, stops every thread of the
worker, the one that renews its leases too. Its jobs would be taken over, and run twice, though no worker died. So each
worker has a small second process (`lease_keeper_process`) that renews when the worker falls silent, as long as the
worker runs: not when it is dead or suspended. Worker processes that were forked off one parent share it.
"""

from __future__ import annotations

import logging
import marshal
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from penstock.producers.senders.redis.sender import GROUP
from penstock.workers.brokers.redis.lease_keeper_process import STARTED

log = logging.getLogger(__name__)

_SCRIPT = Path(__file__).with_name("lease_keeper_process.py")
_END_SECONDS = 5.0
_PAUSE_SECONDS = 5.0
"""Between two starts."""
_WITHOUT = "leases end when a handler holds the interpreter for longer; no process to keep them: %s"


def is_possible() -> bool:
    """Whether this system shows that a process is suspended; elsewhere its leases could outlive it."""
    return bool(sys.executable) and Path("/proc/self/stat").exists()


class KeeperProcess:
    """The second process, and the socket to it. Thread-safe.

    A process that has made it may fork: its children send to the same second process, which serves all, and it alone
    starts that again.

    Attributes:
        pid: of the second process; None: it does not run.
    """

    def __init__(self) -> None:
        self._owner = os.getpid()
        # Of whole messages, for many that send, and with an end for the reader. It is left to the next process.
        self._socket, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setblocking(False)
        self._process: subprocess.Popen[bytes] | None = None
        self._start_at = 0.0
        self._lock = threading.Lock()

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def ensure(self) -> None:
        """Start the process if it does not run. If that fails, workers go on without it for a while."""
        if os.getpid() != self._owner:
            return
        with self._lock:
            if self._process is not None and self._process.poll() is not None:
                log.warning("the process that keeps leases ended with %s; starting another", self._process.returncode)
                self._process = None
            if self._process is None and time.monotonic() >= self._start_at:
                self._start()

    def send(self, message: bytes) -> None:
        with suppress(OSError):  # it is stopped, with its socket full
            self._socket.send(message)

    def close(self) -> None:
        """Send no more. The process ends when all who share it have closed; its owner waits for that a little."""
        self._socket.close()
        if os.getpid() != self._owner:
            return
        self._theirs.close()
        with self._lock:
            process, self._process = self._process, None
        if process is not None:
            try:
                process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _start(self) -> None:
        self._start_at = time.monotonic() + _PAUSE_SECONDS
        try:
            # -I and -S: no site-packages, no environment, 3 MB. A session of its own: a signal to the worker's whole
            # group is for the worker.
            self._process = subprocess.Popen(  # noqa: S603  # a script of ours
                [sys.executable, "-I", "-S", str(_SCRIPT)],
                stdin=self._theirs.fileno(),
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            log.warning(_WITHOUT, error)


class LeaseKeeper:
    """Reports a consumer's state to the process, whole each time: one that was just started knows it from the next
    report on. Thread-safe.

    Arguments:
        url: the Redis that the leases are on.
        name: the consumer's.
        process: shared with others, and closed by its owner; None: one of its own.
    """

    def __init__(
        self,
        url: str,
        name: str,
        *,
        lease_seconds: float,
        timeout_seconds: float,
        process: KeeperProcess | None = None,
    ) -> None:
        self._url, self._shared = url, process
        self._process: KeeperProcess | None = None
        self._options = {
            "name": name,
            "lease_seconds": lease_seconds,
            "timeout_seconds": timeout_seconds,
            "group": GROUP,
            "pid": os.getpid(),
            "started": _started_at(),
        }
        self._lanes: list[bytes] = []
        self._lock = threading.Lock()

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start the process, unless it is shared. If that fails, the worker goes on without it."""
        with self._lock:
            if self._process is None:
                try:
                    self._process = self._shared or KeeperProcess()
                except OSError as error:
                    log.warning(_WITHOUT, error)
                    return
            self._process.ensure()
            self._report()

    def follow(self, url: str) -> None:
        """Renew on this server from now on: another one, after a failover."""
        with self._lock:
            if url != self._url:
                self._url = url
                self._report()

    def watch(self, lane: bytes) -> None:
        """Also renew the entries that are pending in this lane."""
        with self._lock:
            self._lanes.append(lane)
            self._report()

    def renewed(self) -> None:
        """Report that the worker has renewed its leases itself."""
        with self._lock:
            if self._process is not None:
                self._process.ensure()
            self._report()

    def close(self) -> None:
        with self._lock:
            process, self._process = self._process, None
            if process is not None and process is self._shared:
                process.send(self._message([]))  # others may take the entries over from now on
            elif process is not None:
                process.close()

    def _report(self) -> None:
        if self._process is not None:
            self._process.send(self._message(self._lanes))

    def _message(self, lanes: list[bytes]) -> bytes:
        # The password goes through the socket: arguments can be read by anyone on this machine.
        return marshal.dumps(self._options | _address(self._url) | {"lanes": lanes})


def _started_at() -> str:
    """When this process started, as `/proc` has it: its id alone may be another's later."""
    return Path("/proc/self/stat").read_text().rpartition(")")[2].split()[STARTED]


def _address(url: str) -> dict[str, Any]:
    from redis.connection import SSLConnection, parse_url

    parsed: dict[str, Any] = dict(parse_url(url))  # type: ignore[no-untyped-call,unused-ignore]
    tls = None
    if parsed.get("connection_class") is SSLConnection:
        tls = {
            "verify": parsed.get("ssl_cert_reqs", "required") != "none",
            "check_hostname": parsed.get("ssl_check_hostname", True),
            "cafile": parsed.get("ssl_ca_certs"),
            "capath": parsed.get("ssl_ca_path"),
            "certfile": parsed.get("ssl_certfile"),
            "keyfile": parsed.get("ssl_keyfile"),
        }
    return {
        "path": parsed.get("path"),
        "host": parsed.get("host", "localhost"),
        "port": parsed.get("port", 6379),
        "db": parsed.get("db", 0),
        "username": parsed.get("username"),
        "password": parsed.get("password"),
        "tls": tls,
    }
