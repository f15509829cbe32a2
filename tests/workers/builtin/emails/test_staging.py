"""Mails of a system that is tried out with real data."""

from __future__ import annotations

import pytest
from pydantic import ValidationError
from support.builtin.servers import Server, send
from support.builtin.tools import settings

from penstock.producers.storage import FileStorage
from penstock.schemas.builtin.emails import SendEmail
from penstock.schemas.wire.codec import decode
from penstock.workers import Context, Discard
from penstock.workers.builtin.emails.mailers.mailer import Mailer

JOB = SendEmail(
    to=("Ada <ada@example.com>", "real@customer.example"),
    bcc=("other@customer.example",),
    subject="x",
    text="x",
)
HERE, CATCH_ALL = "*@Example.com", "Staging <staging@example.com>"


def test_mails_to_strangers_go_to_the_catch_all(mailer: Mailer, server: Server, ctx: Context, storage: FileStorage):
    result = send(mailer, ctx, storage, JOB, allow=HERE, catch_all=CATCH_ALL)
    ((_, recipients, mail),) = server.mails
    assert recipients == ["ada@example.com", "staging@example.com"]
    assert mail["To"] == "Ada <ada@example.com>, real@customer.example"
    assert result.accepted == ("ada@example.com", "real@customer.example", "other@customer.example")
    assert result.diverted == ("real@customer.example", "other@customer.example")


def test_a_catch_all_alone_gets_every_mail(mailer: Mailer, server: Server, ctx: Context, storage: FileStorage):
    send(mailer, ctx, storage, JOB, catch_all=CATCH_ALL)
    assert server.mails[0][1] == ["staging@example.com"]


def test_without_a_catch_all_strangers_get_nothing(mailer: Mailer, server: Server, ctx: Context, storage: FileStorage):
    result = send(mailer, ctx, storage, JOB, allow=[HERE])
    assert server.mails[0][1] == ["ada@example.com"]
    assert result.accepted == ("ada@example.com",)
    assert {refusal.address for refusal in result.refused} == {"real@customer.example", "other@customer.example"}
    assert ctx.outgoing == []
    outcome = send(mailer, ctx, storage, JOB, allow=["ada@büro.example"])
    assert isinstance(outcome, Discard)
    assert "real@customer.example" in outcome.reason
    assert len(server.mails) == 1


def test_a_catch_all_that_is_put_off_gets_the_mail_later(
    mailer: Mailer, server: Server, ctx: Context, storage: FileStorage
):
    server.replies["staging@example.com"] = "450 greylisted"
    result = send(mailer, ctx, storage, JOB, allow=HERE, catch_all=CATCH_ALL)
    assert result.accepted == ("ada@example.com",)
    (envelope,) = ctx.outgoing
    again = decode(envelope).job
    assert isinstance(again, SendEmail)
    assert again.deliver_to == ("real@customer.example", "other@customer.example")
    server.replies.clear()
    send(mailer, Context(job_id=envelope.id), storage, again, allow=HERE, catch_all=CATCH_ALL)
    assert server.mails[-1][1] == ["staging@example.com"]


@pytest.mark.parametrize("wrong", [{"allow": "example.com"}, {"allow": "a b@x"}, {"catch_all": "nobody"}])
def test_a_wrong_pattern_or_address_is_refused(wrong: dict[str, str]):
    with pytest.raises(ValidationError, match=r"not a pattern|not an address"):
        settings(emails=wrong)
