"""Memory of processes."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path


def peak_memory(pid: int | None = None) -> int | None:
    """Peak resident memory of a process in bytes; None where it cannot be read.

    Arguments:
        pid: None: this process.
    """
    try:
        # Not `ru_maxrss`: that also counts what the parent had when it forked.
        for line in Path(f"/proc/{pid or 'self'}/status").read_bytes().splitlines():
            if line.startswith(b"VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        if pid is None:
            return peak_of(resource.getrusage(resource.RUSAGE_SELF))
    return None


def peak_of(usage: resource.struct_rusage) -> int:
    """Peak resident memory in bytes, from a getrusage result."""
    return int(usage.ru_maxrss) * (1 if sys.platform == "darwin" else 1024)


def resident_memory() -> int:
    """Resident memory of this process in bytes; where that cannot be read, its peak."""
    try:
        return int(Path("/proc/self/statm").read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return peak_of(resource.getrusage(resource.RUSAGE_SELF))
