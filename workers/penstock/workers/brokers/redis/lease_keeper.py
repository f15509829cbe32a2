"""Keeps a worker's leases on Redis alive while one of its handlers holds the interpreter (the GIL).

A regular expression that backtracks for minutes, or an extension that does not release it, stops every thread of the
worker, the one that renews its leases too. Its jobs would be taken over, and run twice, though no worker died. So each
worker has a small second process (`lease_keeper_process`) that renews when the worker falls silent, as long as the
worker runs: not when it is dead or suspended.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from penstock.producers.senders.redis.sender import GROUP

log = logging.getLogger(__name__)

_SCRIPT = Path(__file__).with_name("lease_keeper_process.py")
_END_SECONDS = 5.0


def is_possible() -> bool:
    """Whether this system shows that a process is suspended; elsewhere its leases could outlive it."""
    return bool(sys.executable) and Path("/proc/self/stat").exists()


class LeaseKeeper:
    """Starts the process, again if it dies, and notifies it. Thread-safe.

    Arguments:
        url: the Redis that the leases are on.
        name: the consumer's.
    """

    def __init__(self, url: str, name: str, *, lease_seconds: float, timeout_seconds: float) -> None:
        self._url = url
        self._options = {
            "name": name,
            "lease_seconds": lease_seconds,
            "timeout_seconds": timeout_seconds,
            "group": GROUP,
        }
        self._lanes: list[bytes] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start the process. If that fails, the worker goes on without it."""
        with self._lock:
            self._start()

    def follow(self, url: str) -> None:
        """Renew on this server from now on: another one, after a failover."""
        with self._lock:
            if url != self._url:
                self._url = url
                if self._process is not None:
                    self._close()
                    self._start()

    def watch(self, lane: bytes) -> None:
        """Also renew the entries that are pending in this lane."""
        with self._lock:
            self._lanes.append(lane)
            self._notify(lane + b"\n")

    def renewed(self) -> None:
        """Report that the worker has renewed its leases itself."""
        with self._lock:
            if self._process is not None and self._process.poll() is not None:
                log.warning("the process that keeps leases ended with %s; starting another", self._process.returncode)
                self._close()
                self._start()
            self._notify(b"\n")

    def close(self) -> None:
        with self._lock:
            self._close()

    def _start(self) -> None:
        if self._process is not None:
            return
        try:
            # -I and -S: no site-packages, no environment, 4 MB. A session of its own: a signal to the worker's whole
            # group is for the worker.
            self._process = subprocess.Popen(  # noqa: S603  # a script of ours
                [sys.executable, "-I", "-S", str(_SCRIPT)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            log.warning(
                "leases end when a handler holds the interpreter for longer; no process to keep them: %s", error
            )
            return
        assert self._process.stdin is not None
        os.set_blocking(self._process.stdin.fileno(), False)
        # The password goes through the pipe: arguments can be read by anyone on this machine.
        options = self._options | _address(self._url) | {"pid": os.getpid()}
        self._notify(b"\n".join((json.dumps(options).encode(), *self._lanes, b"")))

    def _notify(self, line: bytes) -> None:
        if self._process is not None and self._process.stdin is not None:
            with suppress(OSError):  # it died, or is stopped with its pipe full
                os.write(self._process.stdin.fileno(), line)

    def _close(self) -> None:
        if self._process is None:
            return
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None


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
