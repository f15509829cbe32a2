"""Memory that mails with attachments take."""

from __future__ import annotations

import email
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from support.builtin.servers import send
from support.builtin.tools import put

from penstock.producers.storage import FileStorage
from penstock.schemas.builtin.emails import SendEmail
from penstock.schemas.wire.ids import new_id
from penstock.workers import Context, Retry
from penstock.workers.builtin.emails.flattened import Mail
from penstock.workers.builtin.emails.mailers.maildir import MaildirMailer
from penstock.workers.builtin.emails.mailers.mailer import Delivered, Mailer

MEGABYTE = 1024 * 1024


def with_attachment(key: str) -> SendEmail:
    return SendEmail(to="a@example.com", subject="x", text="x", attachments=[{"key": key}])  # type: ignore[arg-type,list-item]


def test_an_attachment_is_never_in_memory_as_a_whole(tmp_path: Path, ctx: Context, storage: FileStorage):
    mailer = MaildirMailer(tmp_path / "mail")
    send(mailer, Context(job_id=new_id()), storage)  # loads the modules
    content = bytes(range(256)) * 4096 * 16
    put(storage, "big", content)
    tracemalloc.start()
    send(mailer, ctx, storage, with_attachment("big"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < len(content) / 2
    (path,) = [path for path in (tmp_path / "mail" / "new").iterdir() if ctx.job_id in path.name]
    mail = email.message_from_bytes(path.read_bytes())
    assert mail.get_payload()[1].get_payload(decode=True) == content


class _Counting(Mailer):
    """Counts the mails that are built at a time."""

    def __init__(self, mailer: MaildirMailer) -> None:
        super().__init__(2)
        self.mailer, self.lock, self.now, self.most = mailer, threading.Lock(), 0, 0

    def _deliver(self, build: Any, sender: str, recipients: Any) -> Delivered:
        def count_and_build() -> Mail:
            with self.lock:
                self.now += 1
                self.most = max(self.most, self.now)
            return build()

        try:
            return self.mailer.deliver(count_and_build, sender, recipients)
        finally:
            with self.lock:
                self.now -= 1

    def check(self) -> str:
        return self.mailer.check()


def test_mails_are_built_only_when_a_connection_is_free(tmp_path: Path, storage: FileStorage):
    mailer = _Counting(MaildirMailer(tmp_path / "mail"))
    put(storage, "file", b"x" * 10_000)
    threads = [
        threading.Thread(target=send, args=(mailer, Context(job_id=new_id()), storage, with_attachment("file")))
        for _ in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list((tmp_path / "mail" / "new").iterdir())) == 12
    assert mailer.most <= 2


@pytest.mark.parametrize("content", [b"", b"x", b"x" * 57, b"x" * 58, bytes(range(256)) * 3000])
def test_attachments_of_each_length_arrive(tmp_path: Path, ctx: Context, storage: FileStorage, content: bytes):
    put(storage, "file", content)
    send(MaildirMailer(tmp_path / "mail"), ctx, storage, with_attachment("file"))
    (path,) = (tmp_path / "mail" / "new").iterdir()
    mail = email.message_from_bytes(path.read_bytes())
    assert mail.get_payload()[1].get_payload(decode=True) == content
    assert max(map(len, path.read_bytes().split(b"\n"))) <= 78 + len(mail["Message-ID"])


def test_an_attachment_that_changes_while_it_is_read_is_a_retry(
    tmp_path: Path, ctx: Context, storage: FileStorage, monkeypatch: pytest.MonkeyPatch
):
    put(storage, "file", b"x" * 100)
    before = storage.find("file")
    put(storage, "file", b"x" * 50)
    monkeypatch.setattr(storage, "find", lambda _key: before)
    outcome = send(MaildirMailer(tmp_path / "mail"), ctx, storage, with_attachment("file"))
    assert isinstance(outcome, Retry)
    assert "changed while it was read" in outcome.reason
    assert [path for path in (tmp_path / "mail").rglob("*") if path.is_file()] == []
