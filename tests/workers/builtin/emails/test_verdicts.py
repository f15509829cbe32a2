"""Outcomes of `email.send` by the reply of the server, and the settings that bound its attempts."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from support.builtin.servers import Server, controlled, send
from support.builtin.tools import settings

from penstock.config.errors import StorageError
from penstock.producers.storage import FileStorage
from penstock.schemas.builtin.emails import Attachment, SendEmail
from penstock.workers import Context, Permanent, Retry
from penstock.workers.builtin.emails.mailers.mailer import Mailer
from penstock.workers.builtin.emails.mailers.replies import is_for_good, is_quota
from penstock.workers.builtin.emails.transport import make_mailer
from penstock.workers.local.up.redis_server import free_port


@pytest.mark.parametrize(
    ("reply", "limited"),
    [
        ("530 5.7.0 Must issue a STARTTLS command first", False),
        ("530 5.7.1 Authentication required", False),
        ("535 5.7.8 Username and password not accepted", False),
        ("550 5.4.5 Daily user sending limit exceeded", True),
        ("550 5.4.5 Daily sending quota exceeded", True),
        ("550 5.1.90 Your message can't be sent because you've reached your daily limit for message recipients", True),
        ("554 5.2.0 STOREDRV.Submission.Exception:SubmissionQuotaExceededException", True),
        ("550 5.7.232 Your message can't be sent because your trial tenant has exceeded its daily limit", True),
        ("452 4.5.3 Your message has too many recipients", False),
        ("421 4.7.0 Too many messages from your address, try later", False),
        ("454 Throttling failure: Maximum sending rate exceeded.", False),
        ("454 Throttling failure: Daily message quota exceeded.", True),
        ("550 5.7.1 rate limit of your address exceeded", False),
        ("451 4.7.1 greylisted", False),
        ("550 5.3.2 system does not accept messages now", False),
    ],
)
def test_replies_about_the_login_the_system_and_limits_are_for_now(reply: str, limited: bool):
    code, _, text = reply.partition(" ")
    assert not is_for_good(int(code), text)
    assert is_quota(int(code), text) is limited


@pytest.mark.parametrize(
    "reply",
    [
        "550 5.1.1 no such user here",
        "552 5.2.2 The recipient's mailbox is over its quota",
        "552 5.3.4 Message size exceeds the sending limit",
        "550 5.7.1 rejected by policy",
        "554 5.7.1 this message looks like spam",
        "501 5.1.3 bad address syntax",
        "553 5.6.7 no SMTPUTF8",
    ],
)
def test_replies_about_the_mail_or_the_mailbox_are_for_good(reply: str):
    code, _, text = reply.partition(" ")
    assert is_for_good(int(code), text)


@pytest.mark.parametrize("where", ["MAIL", "DATA", "a@example.com"])
def test_a_daily_limit_is_waited_for(mailer: Mailer, server: Server, ctx: Context, storage: FileStorage, where: str):
    server.replies[where] = "550 5.4.5 Daily user sending limit exceeded"
    outcome = send(mailer, ctx, storage)
    assert isinstance(outcome, Retry)
    assert outcome.after is not None
    assert outcome.after >= timedelta(hours=1)
    assert "550 5.4.5 Daily user sending limit" in outcome.reason


def test_a_login_that_the_server_asks_for_is_a_retry(
    mailer: Mailer, server: Server, ctx: Context, storage: FileStorage
):
    server.replies["MAIL"] = "530 5.7.0 Authentication required"
    outcome = send(mailer, ctx, storage)
    assert isinstance(outcome, Retry)
    assert outcome.after is None


def test_recipients_over_a_limit_get_a_job_and_those_refused_for_good_do_not(
    mailer: Mailer, server: Server, ctx: Context, storage: FileStorage
):
    server.replies = {"b@example.com": "550 5.4.5 Daily sending quota exceeded", "c@example.com": "550 5.1.1 unknown"}
    job = SendEmail(to=["a@example.com", "B <b@example.com>", "c@example.com"], subject="x", text="x")  # type: ignore[arg-type]
    assert send(mailer, ctx, storage, job).accepted == ("a@example.com",)
    (envelope,) = ctx.outgoing
    assert b'"deliver_to":["b@example.com"]' in envelope.body.replace(b" ", b"")


def unreachable(ctx: Context, storage: FileStorage, **emails: Any) -> Any:
    return send(make_mailer(f"smtp://127.0.0.1:{free_port()}"), ctx, storage, **emails)


def test_an_outage_is_retried_as_often_as_set(ctx: Context, storage: FileStorage):
    assert isinstance(unreachable(Context(job_id=ctx.job_id, attempt=23), storage), Retry)
    with pytest.raises(Permanent, match=r"ConnectionRefusedError.*attempt 24 of 24; see unavailable_attempts"):
        unreachable(Context(job_id=ctx.job_id, attempt=24), storage)
    assert isinstance(unreachable(Context(job_id=ctx.job_id, attempt=24), storage, unavailable_attempts=25), Retry)
    policy = SendEmail.kind().retry
    longest = settings().emails.unavailable_attempts
    waits = sum((policy.delay(failures) for failures in range(1, longest)), timedelta())
    assert policy.exhausted_reason(None, longest, timedelta(days=9)) is None
    assert timedelta(hours=8) < waits < timedelta(days=4)
    assert policy.exhausted_reason(TypeError, 12, timedelta()) is not None


def test_an_error_of_the_content_is_retried_only_if_set(mailer: Mailer, ctx: Context, storage: FileStorage):
    job = SendEmail(to=["a@example.com"], template="missing")  # type: ignore[list-item]
    with pytest.raises(Permanent, match=r"missing\.subject\.txt.*html$"):
        send(mailer, ctx, storage, job)
    outcome = send(mailer, ctx, storage, job, content_attempts=3)
    assert isinstance(outcome, Retry)
    assert "missing.subject.txt" in outcome.reason
    with pytest.raises(Permanent, match="attempt 3 of 3"):
        send(mailer, Context(job_id=ctx.job_id, attempt=3), storage, job, content_attempts=3)


def test_a_storage_out_of_reach_is_a_retry_and_keeps_the_connection(
    mailer: Mailer, server: Server, ctx: Context, storage: FileStorage, monkeypatch: pytest.MonkeyPatch
):
    def fail(_key: str) -> Any:
        raise StorageError("the bucket cannot be reached")

    monkeypatch.setattr(storage, "find", fail)
    job = SendEmail(to=["a@example.com"], subject="x", text="x", attachments=(Attachment(key="a"),))  # type: ignore[list-item]
    outcome = send(mailer, ctx, storage, job)
    assert isinstance(outcome, Retry)
    assert outcome.reason == "the bucket cannot be reached"
    send(mailer, ctx, storage)
    assert server.connections == 1


def test_a_job_that_was_cancelled_while_it_waited_for_a_connection_is_not_sent(
    mailer: Mailer, server: Server, ctx: Context, storage: FileStorage
):
    ctx.cancel(TimeoutError("past its timeout"))
    with pytest.raises(TimeoutError):
        send(mailer, ctx, storage)
    assert server.mails == []


def test_a_mailer_lost_for_good_by_a_refused_sender_names_the_server(ctx: Context, storage: FileStorage):
    server = Server()
    controller = controlled(server)
    server.replies["MAIL"] = "550 5.7.1 not your address"
    mailer = make_mailer(f"smtp://127.0.0.1:{controller.port}")
    with pytest.raises(Permanent, match=rf"127\.0\.0\.1:{controller.port}: 550 5\.7\.1 not your address"):
        send(mailer, ctx, storage)
    mailer.close()
    controller.stop()
