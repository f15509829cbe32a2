"""Stops what a killed supervisor left behind. Run as a script of its own: it must start fast and need nothing.

The supervisor holds the other end of our stdin and says on it what runs: `+PID STAGE` and `-PID`, a line each. When
the pipe ends, the supervisor is gone, in whatever way: what still runs is stopped, the lower stages first, so that
workers give their jobs back while Redis is still there. The folder's lock is inherited, and so held until then.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time


def main(grace_seconds: float) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    running: dict[int, int] = {}
    for line in sys.stdin:
        words = line.split()
        if line.startswith("+") and len(words) == 2:
            running[int(words[0][1:])] = int(words[1])
        elif line.startswith("-"):
            running.pop(int(words[0][1:]), None)
    for stage in sorted(set(running.values())):
        stop([pid for pid in running if running[pid] == stage], grace_seconds)


def stop(pids: list[int], grace_seconds: float) -> None:
    """SIGTERM to the processes; after the grace, SIGKILL to what is left of their groups."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + grace_seconds
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)


def alive(pid: int) -> bool:
    """Whether it runs; one that ended and that nobody has waited for, as in many containers, does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):
        return not os.path.isdir("/proc/self")  # no procfs: macOS, where launchd waits for all


if __name__ == "__main__":
    main(float(sys.argv[1]))
