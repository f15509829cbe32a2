"""Processes of servers and workers, as a test sees them."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from support.polling import until


def runs(pid: int) -> bool:
    """Whether a process runs. One that has ended and is not reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False


def freeze(pid: int) -> None:
    """Stop a process, and wait until all of its threads stand still: a thread on another core may still answer."""
    os.kill(pid, signal.SIGSTOP)

    def states() -> set[str]:
        states = set()
        for thread in Path(f"/proc/{pid}/task").glob("*/stat"):
            with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
                states.add(thread.read_text().rpartition(")")[2].split()[0])
        return states

    until(lambda: states() <= {"T", "Z", "X"}, pause=0.01)  # a thread that has ended does nothing, either


def resident(pid: int) -> int:
    """Memory of a process that is in RAM, in bytes."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def output_of(command: Sequence[str], seconds: float, **options: Any) -> tuple[int, str]:
    """The exit code of a command, and its output and errors together.

    `subprocess.run` kills the command alone when its time is over, and then waits, without a limit, for the processes
    that the command has started to close its output: a script whose program hangs would hang the caller.

    Raises:
        TimeoutExpired: it took longer; it was killed with all that it had started.
    """
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, **options
        )
        try:
            code = process.wait(seconds)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(seconds)
        output.seek(0)
        return code, output.read().decode(errors="replace")
