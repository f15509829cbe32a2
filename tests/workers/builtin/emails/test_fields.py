from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from support.builtin.servers import Server, send
from support.builtin.tools import put, settings

from penstock.producers.storage import FileStorage
from penstock.schemas.builtin.emails import SendEmail
from penstock.workers import Context, Permanent
from penstock.workers.builtin.emails.content.templating import Templates
from penstock.workers.builtin.emails.mailers.mailer import Mailer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    files = {
        "hi.subject.txt": "Hi {{ name }}",
        "hi.txt": "Hi {{ name }}, <b> stays",
        "hi.html": "<p>Hi {{ name }}</p>",
        "evil.subject.txt": "x",
        "evil.txt": "{{ ''.__class__.__mro__ }}",
        "broken.subject.txt": "x",
        "broken.txt": "{% if %}",
        "lonely.txt": "no subject",
        "including.subject.txt": "x",
        "including.txt": "{% include 'nothing.txt' %}",
    }
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    return tmp_path


def test_a_template_escapes_html_and_only_html(folder: Path):
    content = Templates(str(folder)).render("hi", {"name": "<script>"})
    assert content.subject == "Hi <script>"
    assert content.text == "Hi <script>, <b> stays"
    assert content.html == "<p>Hi &lt;script&gt;</p>"


def test_a_variable_cannot_add_a_header(
    folder: Path, mailer: Mailer, server: Server, ctx: Context, storage: FileStorage
):
    job = SendEmail(to="a@example.com", template="hi", variables={"name": "x\r\nBcc: victim@example.com\r\n\r\nbody"})
    send(mailer, ctx, storage, job, templates=str(folder))
    ((_, recipients, mail),) = server.mails
    assert recipients == ["a@example.com"]
    assert mail["Bcc"] is None
    assert mail["Subject"] == "Hi x Bcc: victim@example.com body"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("hi", r"hi\.subject\.txt: 'name' is undefined"),
        ("evil", r"evil\.txt: .*unsafe"),
        ("broken", r"broken\.txt"),
        ("lonely", r"needs lonely\.subject\.txt"),
        ("unknown", r"needs unknown\.subject\.txt"),
        ("including", r"'nothing\.txt', which it includes, is missing"),
    ],
)
def test_a_template_that_cannot_be_filled_is_permanent_and_says_why(folder: Path, template: str, expected: str):
    with pytest.raises(Permanent, match=expected):
        Templates(str(folder)).render(template, {})


def test_the_shipped_templates_can_be_filled_and_overridden(folder: Path):
    shipped = Templates()
    welcome = shipped.render(
        "welcome", {"product": "Penstock & Co", "name": "Ada", "url": "https://x.example/?a=1&b=2"}
    )
    assert welcome.subject == "Welcome, Ada"
    assert "Penstock & Co" in (welcome.text or "")
    assert "Penstock &amp; Co" in (welcome.html or "")
    assert 'href="https://x.example/?a=1&amp;b=2"' in (welcome.html or "")
    assert shipped.render("welcome", {"product": "Penstock"}).subject == "Welcome"
    with pytest.raises(Permanent, match="'product' is undefined"):
        shipped.render("welcome", {})
    (folder / "welcome.subject.txt").write_text("Servus")
    assert Templates(str(folder)).render("welcome", {"product": "Penstock"}).subject == "Servus"


@pytest.mark.parametrize(
    "fields",
    [
        {"to": "not an address", "subject": "x", "text": "x"},
        {"to": "a@example.com\r\nBcc: b@example.com", "subject": "x", "text": "x"},
        {"to": [], "subject": "x", "text": "x"},
        {"to": "a@example.com", "subject": "x\nBcc: b@example.com", "text": "x"},
        {"to": "a@example.com", "subject": "x"},
        {"to": "a@example.com", "text": "x"},
        {"to": "a@example.com", "template": "../../etc/passwd"},
        {"to": "a@example.com", "template": "hi", "subject": "x"},
        {"to": "a@example.com", "subject": "x", "text": "x", "variables": {"a": 1}},
        {"to": "a@example.com", "subject": "x", "text": "x", "deliver_to": ["b@example.com"]},
        {"to": "a@example.com", "subject": "x", "text": "x", "attachments": [{"key": "a", "filename": "a\r\nX: y"}]},
        {"to": "a@example.com", "subject": "x", "text": "x", "attachments": [{"key": "a", "media_type": "x\r\ny/z"}]},
    ],
)
def test_a_wrong_message_is_refused_by_the_producer(fields: dict[str, Any]):
    with pytest.raises(ValidationError):
        SendEmail(**fields)


def test_attachments_are_bounded_and_must_exist(mailer: Mailer, server: Server, ctx: Context, storage: FileStorage):
    put(storage, "big", b"x" * 600)
    twice = SendEmail(to="a@example.com", subject="x", text="x", attachments=[{"key": "big"}, {"key": "big"}])
    with pytest.raises(Permanent, match="max_attachment_bytes is 1000"):
        send(mailer, ctx, storage, twice, max_attachment_bytes=1000)
    for key in ("missing", "../x"):
        job = SendEmail(to="a@example.com", subject="x", text="x", attachments=[{"key": key}])
        with pytest.raises(Permanent, match=key):
            send(mailer, ctx, storage, job)
    assert server.mails == []


def test_personal_content_is_hidden_in_logs():
    job = SendEmail(to="a@example.com", subject="Your diagnosis", text="secret")
    assert "secret" not in repr(job)
    assert job.redacted()["subject"] == "***"
    assert "secret" not in repr(SendEmail(to="a@example.com", template="x", variables={"token": "secret"}))


def test_a_wrong_sender_in_the_settings_is_refused():
    for sender in ("nobody", "", "a@b\nBcc: c@d", "@example.com"):
        with pytest.raises(ValidationError):
            settings(emails={"from": sender})


def test_a_mail_of_html_alone_is_one_if_so_set(mailer: Mailer, server: Server, ctx: Context, storage: FileStorage):
    send(mailer, ctx, storage, SendEmail(to="a@example.com", subject="x", html="<p>ä</p>"), text_from_html=False)
    assert server.mails[0][2].get_content_type() == "text/html"
