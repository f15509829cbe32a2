"""Memory of processes, and the limits after which they are replaced."""

from __future__ import annotations

import os
import random
import resource
import sys
from pathlib import Path

from penstock.config.settings import Settings
from penstock.ledger.rows.attempts import in_mebibytes

JITTER = 0.1
"""Share of `max_jobs` by which the number of a process may differ, so that processes do not renew all at a time."""


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


def resident_memory(pid: int | None = None) -> int:
    """Resident memory of a process in bytes; where that cannot be read, the peak of this one, and 0 for another one.

    Arguments:
        pid: None: this process.
    """
    try:
        return int(Path(f"/proc/{pid or 'self'}/statm").read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return peak_of(resource.getrusage(resource.RUSAGE_SELF)) if pid is None else 0


class WearLimits:
    """The limits of one process, from `max_jobs` and `max_memory`.

    Attributes:
        most_jobs: drawn near `max_jobs`; None: any number.
        most_memory: in bytes; None: any size.
    """

    def __init__(self, settings: Settings) -> None:
        self.most_jobs = None if settings.max_jobs is None else _draw(settings.max_jobs)
        self.most_memory = settings.max_memory

    def reason(self, jobs: int, pid: int | None = None) -> str | None:
        """Why a process that has done so many jobs has reached a limit; None: it has not.

        Arguments:
            pid: of the process; None: this one.
        """
        if self.most_jobs is not None and jobs >= self.most_jobs:
            return f"it has done {jobs} jobs"
        if self.most_memory is not None and (memory := resident_memory(pid)) > self.most_memory:
            limit = in_mebibytes(self.most_memory, 1)
            return f"it uses {in_mebibytes(memory, 1)} of memory, and max_memory is {limit}; it has done {jobs} jobs"
        return None


def _draw(max_jobs: int) -> int:
    return max(1, round(max_jobs * random.uniform(1 - JITTER, 1 + JITTER)))
