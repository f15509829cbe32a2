"""Runs of the built-in workers, each in a process of its own, whose memory is measured."""

from __future__ import annotations

import re
from pathlib import Path


def peak_mebibytes() -> float:
    """Peak of this process's resident memory. `ru_maxrss` would include that of the process which started it."""
    match = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match[1]) / 1024
