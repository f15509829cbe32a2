"""The check of the mail server in `penstock doctor`."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.builtin.servers import Server
from support.builtin.tools import settings

from penstock.workers.builtin.emails.mailers.mailer import MailUnavailable
from penstock.workers.cli.doctor.answers import check_mail
from penstock.workers.local.up.redis_server import free_port


def test_a_server_that_answers_is_described_and_gets_no_mail(smtp_url: str, server: Server):
    line = check_mail(settings(smtp_url=smtp_url))
    assert line.startswith("127.0.0.1:")
    assert "not encrypted, no login; SIZE, 8BITMIME, SMTPUTF8" in line
    assert server.mails == []


def test_a_server_that_does_not_answer_is_named(smtp_url: str):
    port = free_port()
    with pytest.raises(MailUnavailable, match=rf"127\.0\.0\.1:{port}: ConnectionRefusedError"):
        check_mail(settings(smtp_url=f"smtp://127.0.0.1:{port}"))
    with pytest.raises(MailUnavailable, match="STARTTLS"):
        check_mail(settings(smtp_url=f"{smtp_url}&starttls=true"))


def test_a_folder_is_looked_at_by_making_it(tmp_path: Path):
    assert check_mail(settings(smtp_url=f"maildir:{tmp_path}/mail")) == f"maildir {tmp_path}/mail"
    (tmp_path / "file").write_text("")
    with pytest.raises(MailUnavailable, match="maildir"):
        check_mail(settings(smtp_url=f"maildir:{tmp_path}/file/mail"))
