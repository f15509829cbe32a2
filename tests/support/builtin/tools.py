"""Small helpers of the tests under `builtin/`."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from penstock.config.settings import Settings
from penstock.producers.storage import Storage


class Progress:
    """Keeps the progress that a handler reports."""

    def __init__(self) -> None:
        self.said: list[tuple[int, int | None]] = []

    def progress(self, job_id: str, done: int, total: int | None, note: str | None) -> None:
        self.said.append((done, total))


def put(storage: Storage, key: str, content: bytes, media_type: str | None = None) -> str:
    storage.write(key, io.BytesIO(content), media_type)
    return key


def get(storage: Storage, key: str) -> bytes:
    with storage.read(key) as stream:
        return stream.read()


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below a folder with its inode and time of change: rewriting one changes both."""
    return {
        str(path.relative_to(folder)): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def settings(**sections: Any) -> Settings:
    return Settings(**sections)
