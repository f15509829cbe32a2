"""Writes the modules that its worker has loaded to a file, when the process ends; of a fork those since then, too."""

from __future__ import annotations

import atexit
import os
import sys
from pathlib import Path

FILE = Path("modules.txt").absolute()


def loaded() -> set[str]:
    return {name for name, module in sys.modules.items() if module}


def _after_fork() -> None:
    before, file = loaded(), FILE.with_name(f"since_fork_{os.getpid()}.txt")
    atexit.register(lambda: file.write_text("\n".join(sorted(loaded() - before))))


atexit.register(lambda: FILE.write_text("\n".join(sorted(loaded()))))
os.register_at_fork(after_in_child=_after_fork)
