"""Files and folders are for their owner alone, whatever the umask, also those that were there before."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path

import pytest

from penstock.config.private_files import make_private_folder, tighten, tighten_all, write_private
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.upgrade import upgrade
from penstock.producers.storage import FileStorage
from penstock.workers.builtin.emails.flattened import Mail
from penstock.workers.builtin.emails.mailers.maildir import MaildirMailer


@pytest.fixture(params=[0o000, 0o077], ids=["umask 000", "umask 077"], autouse=True)
def _umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    """The modes of a folder and of all that is in it."""
    paths = [folder, *folder.rglob("*")]
    return {str(path.relative_to(folder.parent)): stat.S_IMODE(path.stat().st_mode) for path in paths}


def assert_private(folder: Path) -> None:
    """Files are 0600 and folders 0700; and there is something."""
    folders = {str(path.relative_to(folder.parent)) for path in (folder, *folder.rglob("*")) if path.is_dir()}
    all_modes = modes(folder)
    assert len(all_modes) > 1
    wrong = {name: oct(mode) for name, mode in all_modes.items() if mode != (0o700 if name in folders else 0o600)}
    assert not wrong


def fill_ledger(folder: Path) -> None:
    database = Database(f"sqlite:///{folder}/penstock.db")
    upgrade(database)
    try:
        assert {"penstock.db", "penstock.db-wal", "penstock.db-shm"} <= {path.name for path in folder.iterdir()}
        assert_private(folder)
    finally:
        database.close()


def fill_storage(folder: Path) -> None:
    FileStorage(folder).write("reports/2026/sales.csv", io.BytesIO(b"1,2"))


def fill_mailbox(folder: Path) -> None:
    message = EmailMessage()
    message["Message-ID"] = "<1@example.com>"
    MaildirMailer(folder).deliver(lambda: Mail(message), "a@example.com", ["b@example.com"])


FILLS = {"ledger": fill_ledger, "storage": fill_storage, "mailbox": fill_mailbox}


@pytest.mark.parametrize("name", FILLS)
def test_what_is_made_is_for_its_owner_alone(tmp_path: Path, name: str) -> None:
    FILLS[name](tmp_path / "deep" / "var")
    assert_private(tmp_path / "deep")


def test_a_ledger_that_was_open_to_others_is_not_any_more_and_the_log_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "var"
    fill_ledger(folder)
    file = folder / "penstock.db"
    file.chmod(0o644)
    for _ in range(2):
        fill_ledger(folder)
    lines = [record.getMessage() for record in caplog.records if record.name == "penstock.files"]
    assert lines == [f"{file} was open to others (mode 644); now it is for its owner alone"]


def test_the_database_of_a_web_backend_keeps_its_mode(tmp_path: Path) -> None:
    file = tmp_path / "shop.db"
    file.touch()
    file.chmod(0o644)
    database = Database(f"sqlite:///{file}", private=False)
    database.read(lambda connection: connection.exec_driver_sql("SELECT 1").all())
    database.close()
    assert stat.S_IMODE(file.stat().st_mode) == 0o644


@pytest.mark.parametrize("name", ["storage", "mailbox"])
def test_a_folder_that_was_open_to_others_is_not_any_more(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "var"
    folder.mkdir()
    folder.chmod(0o755)
    FILLS[name](folder)
    assert_private(folder)


def test_all_of_a_folder_is_tightened_and_what_its_links_lead_to_is_not(tmp_path: Path) -> None:
    folder, outside = tmp_path / "var", tmp_path / "outside"
    (folder / "redis").mkdir(parents=True)
    for path in (outside, folder / "gateway.key", folder / "redis" / "appendonly.aof"):
        path.write_text("x")
        path.chmod(0o644)
    for path in (folder, folder / "redis"):
        path.chmod(0o755)
    (folder / "link").symlink_to(outside)
    (folder / "gone").symlink_to(tmp_path / "nothing")
    assert tighten_all(folder) == 4
    assert tighten_all(folder) == 0
    assert stat.S_IMODE(outside.stat().st_mode) == 0o644
    (folder / "link").unlink()
    (folder / "gone").unlink()
    assert_private(folder)


def test_a_folder_that_all_may_write_to_stays_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "tmp"
    folder.mkdir()
    folder.chmod(0o1777)
    make_private_folder(folder)
    assert not tighten(folder)
    assert tighten_all(folder) == 0
    assert stat.S_IMODE(folder.stat().st_mode) == 0o1777


def test_a_file_is_replaced_as_a_whole_and_keeps_no_wider_mode(tmp_path: Path) -> None:
    file = tmp_path / "var" / "token.secret"
    write_private(file, "first")
    file.chmod(0o666)
    write_private(file, "second")
    assert file.read_text() == "second"
    assert_private(file.parent)
