"""Files and folders for their owner alone, whatever the umask."""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO

log = logging.getLogger("penstock.files")

_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def make_private_folder(folder: Path) -> None:
    """Make a folder, and those above it that are missing, with mode 0700. One that is there stays as it is."""
    if not folder.is_dir():
        make_private_folder(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)


def open_private(path: Path, flags: int) -> int:
    """`os.open`, which makes a missing file with mode 0600 and takes an existing one of ours from all others."""
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
    _tighten(path, os.fstat(descriptor))
    return descriptor


def append_private(path: Path) -> IO[bytes]:
    """The file, to append to; see `open_private`."""
    return os.fdopen(open_private(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "ab")


def write_private(path: Path, text: str) -> None:
    """Write a file with mode 0600 that is there as a whole or not at all."""
    make_private_folder(path.parent)
    part = path.with_name(f".{path.name}.part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    part.replace(path)


def tighten(path: Path) -> bool:
    """Take a file or folder of this user's from all others, and log that. Returns whether it was open to them.

    A missing one, a link, another user's and a folder that all may write to, such as `/tmp`, stay as they are.
    """
    try:
        return _tighten(path, path.lstat())
    except OSError:  # gone
        return False


def tighten_all(folder: Path) -> int:
    """Tighten a folder with all that is in it, without a log. Returns how many of them were open to others."""
    if not _is_ours(folder.lstat()):
        return 0
    count = sum(_restrict(path, status) for path, status in _walk(folder))
    return count + _restrict(folder, folder.lstat())


def _walk(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(parent, name)
            with contextlib.suppress(OSError):  # gone
                yield path, path.lstat()


def _tighten(path: Path, status: os.stat_result) -> bool:
    changed = _restrict(path, status)
    if changed and (status.st_size or stat.S_ISDIR(status.st_mode)):  # an empty file is one that was just made
        log.warning(
            "%s was open to others (mode %o); now it is for its owner alone", path, stat.S_IMODE(status.st_mode)
        )
    return changed


def _restrict(path: Path, status: os.stat_result) -> bool:
    if not _is_ours(status) or not status.st_mode & _OTHERS:
        return False
    try:
        path.chmod(stat.S_IMODE(status.st_mode) & ~_OTHERS)
        return not path.lstat().st_mode & _OTHERS
    except OSError:  # gone, or on a file system without modes
        return False


def _is_ours(status: os.stat_result) -> bool:
    plain = stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)
    return plain and status.st_uid == os.geteuid() and not status.st_mode & stat.S_ISVTX
