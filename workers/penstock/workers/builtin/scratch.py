"""Folders for the files of one attempt. Those of workers that were killed are deleted by the next that needs one."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NEW = "-new-"
_ABANDONED = 3600
"""Age in seconds of a folder that its process did not live to lock."""


@contextmanager
def scratch_folder(prefix: str) -> Iterator[Path]:
    """A folder in the system's folder for temporary files, which is deleted after the block.

    A lock on the folder says that its process lives; the system releases it however the process ends.

    Arguments:
        prefix: begins the name of the folder, such as `penstock-report`.
    """
    parent = Path(tempfile.gettempdir())
    _sweep(parent, prefix)
    new = Path(tempfile.mkdtemp(prefix=prefix + _NEW))
    lock = os.open(new, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Locked first, and then renamed: no one sweeps a folder that is not locked yet.
        folder = new.rename(new.with_name(new.name.replace(_NEW, "-held-")))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)


def _sweep(parent: Path, prefix: str) -> None:
    """Delete the folders whose processes have ended."""
    for folder in parent.glob(f"{prefix}-held-*"):
        with contextlib.suppress(OSError):  # another user's, locked, or deleted by now
            lock = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)
    for folder in parent.glob(f"{prefix}{_NEW}*"):
        with contextlib.suppress(OSError):  # another user's, or renamed by now
            if time.time() - folder.stat().st_mtime > _ABANDONED:
                folder.rmdir()  # which deletes no folder that holds a file
