"""Lock of a folder: one `penstock up` in it at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from penstock.config.errors import PenstockError
from penstock.config.private_files import make_private_folder, open_private
from penstock.config.supervision import is_alive

NAME = "up.lock"


class FolderInUse(PenstockError):
    """Another `penstock up` runs in this folder.

    Attributes:
        pid: of the other process; None if it could not be read.
    """

    def __init__(self, message: str, pid: int | None) -> None:
        super().__init__(message)
        self.pid = pid


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[int]:
    """Hold the folder; yields the descriptor, by which a child can hold it too.

    The kernel frees the lock with its last holder, so what a killed process left behind blocks no one.

    Raises:
        FolderInUse: names the pid of the other.
    """
    make_private_folder(folder)
    descriptor = open_private(folder / NAME, os.O_RDWR | os.O_CREAT)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _in_use(folder, _read_pid(descriptor)) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)


def _read_pid(descriptor: int) -> int | None:
    text = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
    return int(text) if text.isdecimal() else None


def _in_use(folder: Path, pid: int | None) -> FolderInUse:
    if pid is not None and not is_alive(pid):
        return FolderInUse(
            f"the penstock up that held {folder} (pid {pid}) was killed, and its services are still being stopped; "
            "try again in a moment",
            pid,
        )
    return FolderInUse(
        f"penstock up already runs in {folder} (pid {pid or 'unknown'}); stop that one with Ctrl-C or "
        f"`kill {pid or 'PID'}`, or give another folder with --folder",
        pid,
    )
