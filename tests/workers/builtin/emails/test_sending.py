from __future__ import annotations

import email
import email.policy
import ssl
import threading
from email.message import EmailMessage
from pathlib import Path

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult
from support.builtin.servers import Server, controlled, send
from support.builtin.tools import put

from penstock.config.errors import ConfigError
from penstock.producers.storage import FileStorage
from penstock.schemas.builtin.emails import Attachment, SendEmail
from penstock.schemas.wire.codec import decode
from penstock.schemas.wire.ids import new_id
from penstock.workers import Context, Permanent, Retry
from penstock.workers.builtin.emails.flattened import Mail
from penstock.workers.builtin.emails.mailers.maildir import MaildirMailer
from penstock.workers.builtin.emails.mailers.mailer import Mailer, MailUnavailable
from penstock.workers.builtin.emails.mailers.smtp import SmtpMailer
from penstock.workers.builtin.emails.transport import make_mailer
from penstock.workers.local.up.redis_server import free_port


def test_a_mail_arrives_with_all_its_parts(mailer: Mailer, server: Server, ctx: Context, storage: FileStorage):
    put(storage, "reports/sales.csv", b"a,b\r\n1,2\r\n")
    job = SendEmail(
        to=["a@example.com", "b@example.com"],
        cc="c@example.com",
        bcc="hidden@example.com",
        reply_to="desk@example.com",
        subject="Grüße ☃",
        text="plain",
        html="<b>rich</b>",
        attachments=[
            Attachment(key="reports/sales.csv"),
            Attachment(key="reports/sales.csv", filename="Umsätze.bin", media_type="application/x-thing"),
        ],
    )
    result = send(mailer, ctx, storage, job)
    ((sender, recipients, mail),) = server.mails
    assert sender == "shop@example.com"
    assert recipients == ["a@example.com", "b@example.com", "c@example.com", "hidden@example.com"]
    assert result.accepted == tuple(recipients)
    assert (mail["From"], mail["To"]) == ("Shop <shop@example.com>", "a@example.com, b@example.com")
    assert (mail["Cc"], mail["Reply-To"], mail["Subject"]) == ("c@example.com", "desk@example.com", "Grüße ☃")
    assert "hidden" not in mail.as_string()
    assert mail["Message-ID"] == result.message_id == f"<{ctx.job_id}@example.com>"
    assert mail.get_body(("plain",)).get_content().strip() == "plain"
    assert mail.get_body(("html",)).get_content().strip() == "<b>rich</b>"
    parts = [(part.get_filename(), part.get_content_type()) for part in mail.iter_attachments()]
    assert parts == [("sales.csv", "text/csv"), ("Umsätze.bin", "application/x-thing")]
    assert next(mail.iter_attachments()).get_payload(decode=True) == b"a,b\r\n1,2\r\n"


def test_a_second_attempt_sends_the_same_message_id(mailer: Mailer, server: Server, ctx: Context, storage: FileStorage):
    send(mailer, ctx, storage)
    send(mailer, Context(job_id=ctx.job_id, attempt=2), storage)
    (_, _, first), (_, _, second) = server.mails
    assert first["Message-ID"] == second["Message-ID"]


def test_a_connection_serves_many_mails(mailer: Mailer, server: Server, ctx: Context, storage: FileStorage):
    for _ in range(5):
        send(mailer, ctx, storage)
    assert len(server.mails) == 5
    assert server.connections == 1
    assert server.commands == ["NOOP"] * 4


def test_threads_share_a_bounded_number_of_connections(smtp_url: str, server: Server, storage: FileStorage):
    mailer = make_mailer(smtp_url, connections=2)
    threads = [threading.Thread(target=send, args=(mailer, Context(job_id=new_id()), storage)) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    mailer.close()
    assert len({mail["Message-ID"] for _, _, mail in server.mails}) == 12
    assert server.connections <= 2


def test_a_stale_connection_is_replaced(server: Server, ctx: Context, storage: FileStorage):
    first = controlled(server)
    mailer = make_mailer(f"smtp://127.0.0.1:{first.port}")
    send(mailer, ctx, storage)
    first.stop()
    second = Controller(server, hostname="127.0.0.1", port=first.port)
    second.start()
    send(mailer, ctx, storage)
    assert len(server.mails) == 2
    mailer.close()
    second.stop()


def test_a_connection_that_has_sent_its_share_is_replaced(
    mailer: Mailer, server: Server, ctx: Context, storage: FileStorage
):
    send(mailer, ctx, storage)
    server.replies["MAIL"] = "once 421 too many mails on this connection"
    send(mailer, ctx, storage)
    assert len(server.mails) == 2
    assert server.connections == 2


@pytest.mark.parametrize("where", ["MAIL", "DATA", "a@example.com"])
def test_a_refusal_for_good_is_permanent(
    mailer: Mailer, server: Server, ctx: Context, storage: FileStorage, where: str
):
    server.replies[where] = "550 5.1.1 no such mailbox"
    with pytest.raises(Permanent, match=r"550 5\.1\.1 no such mailbox"):
        send(mailer, ctx, storage)


@pytest.mark.parametrize("where", ["MAIL", "DATA", "a@example.com"])
def test_a_refusal_for_now_is_a_retry_with_its_reason(
    mailer: Mailer, server: Server, ctx: Context, storage: FileStorage, where: str
):
    server.replies[where] = "451 4.7.1 greylisted"
    outcome = send(mailer, ctx, storage)
    assert isinstance(outcome, Retry)
    assert "451 4.7.1 greylisted" in outcome.reason
    server.replies.clear()
    assert send(mailer, ctx, storage).accepted == ("a@example.com",)


def test_recipients_refused_among_others_are_reported_and_those_put_off_get_a_job(
    mailer: Mailer, server: Server, ctx: Context, storage: FileStorage
):
    server.replies = {"bad@example.com": "550 unknown", "later@example.com": "450 greylisted"}
    job = SendEmail(to=["a@example.com", "bad@example.com"], cc="later@example.com", subject="Hi", text="x")
    result = send(mailer, ctx, storage, job)
    assert result.accepted == ("a@example.com",)
    assert [(each.address, each.code, each.reason) for each in result.refused] == [
        ("bad@example.com", 550, "unknown"),
        ("later@example.com", 450, "greylisted"),
    ]
    (envelope,) = ctx.outgoing
    follow_up = decode(envelope).job
    assert isinstance(follow_up, SendEmail)
    assert follow_up.deliver_to == ("later@example.com",)
    server.replies.clear()
    again = send(mailer, Context(job_id=envelope.id), storage, follow_up)
    assert again.accepted == ("later@example.com",)
    _, recipients, mail = server.mails[-1]
    assert recipients == ["later@example.com"]
    assert (mail["To"], mail["Cc"]) == ("a@example.com, bad@example.com", "later@example.com")


def test_a_server_out_of_reach_is_a_retry(ctx: Context, storage: FileStorage):
    outcome = send(make_mailer(f"smtp://127.0.0.1:{free_port()}"), ctx, storage)
    assert isinstance(outcome, Retry)
    assert "ConnectionRefusedError" in outcome.reason


def test_a_connection_lost_after_the_mail_is_a_retry(
    mailer: Mailer, server: Server, ctx: Context, storage: FileStorage
):
    server.replies["after DATA"] = "close"
    assert isinstance(send(mailer, ctx, storage), Retry)
    server.replies.clear()
    send(mailer, ctx, storage)
    (_, _, first), (_, _, second) = server.mails
    assert first["Message-ID"] == second["Message-ID"]


def test_a_server_that_says_nothing_is_given_up_in_time(ctx: Context, storage: FileStorage):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        outcome = send(make_mailer(f"smtp://127.0.0.1:{silent.getsockname()[1]}?timeout=0.2"), ctx, storage)
    assert isinstance(outcome, Retry)
    assert "timed out" in outcome.reason


def test_starttls_and_a_password_are_used(
    server: Server, certificate: tuple[Path, Path], ctx: Context, storage: FileStorage
):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)

    def check(server, session, envelope, mechanism, data):
        good = (data.login, data.password) == (b"me@x", b"p w/?")
        return AuthResult(success=good, handled=False)

    controller = controlled(server, tls_context=context, authenticator=check, auth_required=True)
    place = f"127.0.0.1:{controller.port}?starttls=true"
    mailer = make_mailer(f"smtp://me%40x:p%20w%2F%3F@{place}&cafile={certificate[0]}")
    send(mailer, ctx, storage)
    assert len(server.mails) == 1
    mailer.close()
    wrong = send(make_mailer(f"smtp://me:wrong@{place}&cafile={certificate[0]}"), ctx, storage)
    assert isinstance(wrong, Retry)
    assert "535" in wrong.reason
    assert "wrong" not in wrong.reason
    untrusted = send(make_mailer(f"smtp://me%40x:p@{place}"), ctx, storage)
    assert isinstance(untrusted, Retry)
    assert "CERTIFICATE_VERIFY_FAILED" in untrusted.reason
    controller.stop()


def test_smtps_is_encrypted_from_the_start(
    server: Server, certificate: tuple[Path, Path], ctx: Context, storage: FileStorage
):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    controller = controlled(server, ssl_context=context)
    mailer = make_mailer(f"smtps://127.0.0.1:{controller.port}?cafile={certificate[0]}")
    send(mailer, ctx, storage)
    mailer.close()
    assert len(server.mails) == 1
    controller.stop()


def test_a_server_without_starttls_gets_no_mail_in_the_clear(
    server: Server, smtp_url: str, ctx: Context, storage: FileStorage
):
    assert isinstance(send(make_mailer(smtp_url + "&starttls=true"), ctx, storage), Retry)
    assert server.mails == []


def test_a_maildir_takes_a_job_once(tmp_path: Path, ctx: Context, storage: FileStorage):
    mailer = MaildirMailer(tmp_path / "mail")
    assert send(mailer, ctx, storage).already_delivered is False
    assert send(mailer, ctx, storage).already_delivered is True
    (mail,) = (tmp_path / "mail" / "new").iterdir()
    assert list((tmp_path / "mail" / "tmp").iterdir()) == []
    parsed = email.message_from_bytes(mail.read_bytes(), policy=email.policy.default)
    assert (parsed["Delivered-To"], parsed["Subject"]) == ("a@example.com", "Hello")
    mail.rename(tmp_path / "mail" / "cur" / f"{mail.name}:2,S")
    assert send(mailer, ctx, storage).already_delivered is True
    send(mailer, Context(job_id=new_id()), storage)
    assert len(list((tmp_path / "mail" / "new").iterdir())) == 1


def test_a_maildir_is_readable_by_the_standard_library(tmp_path: Path, ctx: Context, storage: FileStorage):
    import mailbox

    send(MaildirMailer(tmp_path / "mail"), ctx, storage, SendEmail(to="ü@example.com", subject="ö", text="ä"))
    (mail,) = mailbox.Maildir(tmp_path / "mail")
    assert str(ctx.job_id) in mail["Message-ID"]


def test_a_job_id_from_a_stranger_cannot_leave_the_folder(tmp_path: Path, storage: FileStorage):
    mailer = MaildirMailer(tmp_path / "mail")
    for job_id in ("../../evil", "a\r\nBcc: x@y", "x" * 128, "a/b", "..", "<>"):
        send(mailer, Context(job_id=job_id), storage)
    assert len(list((tmp_path / "mail" / "new").iterdir())) == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mail"]


@pytest.mark.parametrize(
    "url",
    [
        "",
        "mail.example.com",
        "smtp://",
        "smtp://h?tls=1",
        "smtp://h?starttls=yes",
        "smtp://h?timeout=0",
        "smtp://h:x",
        "maildir:",
        "smtp://h?timeout=abc",
        "smtp://h?cafile=/no/such",
    ],
)
def test_a_url_that_names_no_mailer_is_refused(url: str):
    with pytest.raises(ConfigError, match="smtp_url"):
        make_mailer(url)


def test_a_non_ascii_address_needs_a_server_that_accepts_it(ctx: Context, storage: FileStorage):
    server = Server()
    controller = controlled(server, enable_SMTPUTF8=False)
    mailer = make_mailer(f"smtp://127.0.0.1:{controller.port}")
    with pytest.raises(Permanent, match="SMTPUTF8"):
        send(mailer, ctx, storage, SendEmail(to="jürgen@example.com", subject="x", text="x"))
    mailer.close()
    controller.stop()


def test_mailers_are_picked_by_url(tmp_path: Path):
    assert isinstance(make_mailer("smtp://localhost"), SmtpMailer)
    mailer = make_mailer("maildir:var/mail")
    assert isinstance(mailer, MaildirMailer)
    assert mailer.folder == Path.cwd() / "var" / "mail"
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(MailUnavailable):
        mail = EmailMessage()
        mail["Message-ID"] = "<a@b>"
        MaildirMailer(blocked / "mail").deliver(lambda: Mail(mail), "a@b", ["c@d"])
