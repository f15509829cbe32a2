"""Guard: stops the services that a killed supervisor left behind. A script of its own, so it starts fast.

The supervisor writes to our stdin which processes run: `+PID STAGE` and `-PID`, a line each. When the pipe ends, the
supervisor is gone. The guard then stops the remaining processes, the lower stages first, so that workers return their
jobs while Redis still runs. The folder's lock is inherited, and so held until then.
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
    """Whether a process runs. A zombie, which many containers do not reap, does not."""
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
