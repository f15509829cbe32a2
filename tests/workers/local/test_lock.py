from __future__ import annotations

import os
from pathlib import Path

import pytest

from penstock.workers.local.up.lock import NAME, FolderInUse, folder_lock


def test_a_second_holder_is_refused_with_the_pid_of_the_first(tmp_path: Path) -> None:
    with (
        folder_lock(tmp_path),
        pytest.raises(FolderInUse, match=rf"already runs in .*\(pid {os.getpid()}\)") as caught,
        folder_lock(tmp_path),
    ):
        pass
    assert caught.value.pid == os.getpid()


def test_a_lock_file_of_a_dead_process_does_not_lock(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text("999999\n")
    with folder_lock(tmp_path):
        assert (tmp_path / NAME).read_text() == f"{os.getpid()}\n"


def test_the_folder_is_free_again_afterwards(tmp_path: Path) -> None:
    for _ in range(2):
        with folder_lock(tmp_path / "new" / "folder"):
            pass
