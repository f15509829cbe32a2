"""Processes of an installation, as an operator starts them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from support.polling import WAIT_SECONDS, until

PENSTOCK = Path(sys.executable).parent / "penstock"


def listens(port: int) -> bool:
    """Whether something accepts connections on this port of 127.0.0.1."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 5):
        return True
    return False


@contextmanager
def running(
    command: Sequence[str | Path],
    log: Path,
    *,
    environment: dict[str, str] | None = None,
    ready: Callable[[subprocess.Popen[bytes]], object],
    stops_within: float = WAIT_SECONDS,
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is stopped at the end by SIGTERM, and must end with 0.

    Arguments:
        log: file for its output.
        environment: in addition to that of the tests.
        ready: of the process; something true once it is at work.
        stops_within: seconds after SIGTERM.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(word) for word in command],
            env={**os.environ, **(environment or {})},
            cwd=log.parent,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        until(
            lambda: ready(process), f"{log.stem} at work", unless=lambda: process.poll() is not None and log.read_text()
        )
        yield process
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            assert process.wait(stops_within) == 0, log.read_text()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
