"""Names, domains in other scripts, and dates of mails."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

import pytest
from pydantic import ValidationError
from support.builtin.servers import Server, controlled, send

from penstock.producers.storage import FileStorage
from penstock.schemas.builtin.emails import SendEmail
from penstock.schemas.wire.ids import derived_id
from penstock.workers import Context, Permanent
from penstock.workers.builtin.emails.mailers.mailer import Mailer
from penstock.workers.builtin.emails.transport import make_mailer


def mail_to(*to: str, **fields: object) -> SendEmail:
    return SendEmail(to=to, **{"subject": "x", "text": "x", **fields})  # type: ignore[arg-type]


@pytest.fixture
def plain_server() -> Iterator[tuple[Server, Mailer]]:
    """A server without SMTPUTF8."""
    server = Server()
    controller = controlled(server, enable_SMTPUTF8=False)
    mailer = make_mailer(f"smtp://127.0.0.1:{controller.port}?timeout=10")
    yield server, mailer
    mailer.close()
    controller.stop()


def test_names_arrive(mailer: Mailer, server: Server, ctx: Context, storage: FileStorage):
    job = mail_to(
        "Ada Lovelace <ada@example.com>",
        '"Müller, Jürgen" <jm@example.com>',
        cc='"The \\"Boss\\"" <boss@example.com>',
        bcc="Hidden <hidden@example.com>",
        reply_to="Desk ☃ <desk@example.com>",
        sender="Sales (EU) & Co. <sales@example.com>",
    )
    result = send(mailer, ctx, storage, job)
    ((sender, recipients, mail),) = server.mails
    assert sender == "sales@example.com"
    assert recipients == ["ada@example.com", "jm@example.com", "boss@example.com", "hidden@example.com"]
    assert result.accepted == tuple(recipients)
    names = [(address.display_name, address.addr_spec) for address in mail["To"].addresses]
    assert names == [("Ada Lovelace", "ada@example.com"), ("Müller, Jürgen", "jm@example.com")]
    assert mail["Cc"].addresses[0].display_name == 'The "Boss"'
    assert mail["Reply-To"].addresses[0].display_name == "Desk ☃"
    assert mail["From"].addresses[0].display_name == "Sales (EU) & Co."


def test_names_survive_the_wire():
    job = mail_to("Müller, Jürgen <jm@example.com>", "Ada <Ada@EXAMPLE.com>", "plain@example.com")
    assert job.to == ('"Müller, Jürgen" <jm@example.com>', "Ada <Ada@example.com>", "plain@example.com")
    assert SendEmail.model_validate_json(job.model_dump_json()) == job


@pytest.mark.parametrize(
    "address",
    ["Ada <ada@example.com>\r\nBcc: x@y.example", "Ada <ada>", "b@example.com, Ada <a@example.com>", "<>", "a b", ""],
)
def test_a_wrong_address_is_refused_and_says_how_to_write_it(address: str):
    with pytest.raises(ValidationError, match=r"control character|Name <a@b>"):
        mail_to(address)


def test_an_address_is_sent_to_once_however_it_is_written(
    mailer: Mailer, server: Server, ctx: Context, storage: FileStorage
):
    send(mailer, ctx, storage, mail_to("Ada <ada@example.com>", cc="ada@example.com"))
    assert server.mails[0][1] == ["ada@example.com"]


def test_a_domain_in_other_letters_needs_no_smtputf8(
    plain_server: tuple[Server, Mailer], ctx: Context, storage: FileStorage
):
    server, mailer = plain_server
    job = mail_to("Ü <u@bücher.example>", "a@example.com", sender="Büro <x@bücher.example>")
    assert send(mailer, ctx, storage, job).accepted == ("u@bücher.example", "a@example.com")
    ((sender, recipients, mail),) = server.mails
    assert sender == "x@xn--bcher-kva.example"
    assert recipients == ["u@xn--bcher-kva.example", "a@example.com"]
    assert str(mail["To"].addresses[0]) == "Ü <u@xn--bcher-kva.example>"
    assert mail["Message-ID"].endswith("@xn--bcher-kva.example>")


def test_an_address_in_other_letters_costs_only_itself_the_mail(
    plain_server: tuple[Server, Mailer], ctx: Context, storage: FileStorage
):
    server, mailer = plain_server
    result = send(mailer, ctx, storage, mail_to("Ada <ada@example.com>", "jürgen@example.com", cc="b@example.com"))
    assert result.accepted == ("ada@example.com", "b@example.com")
    ((address, code),) = [(refusal.address, refusal.code) for refusal in result.refused]
    assert (address, code) == ("jürgen@example.com", 553)
    assert "SMTPUTF8" in result.refused[0].reason
    assert ctx.outgoing == []
    mail = server.mails[0][2]
    assert [str(address) for address in mail["To"].addresses] == ["Ada <ada@example.com>"]
    assert [group.display_name for group in mail["To"].groups] == [None, "jürgen@example.com"]
    with pytest.raises(Permanent, match="SMTPUTF8"):
        send(mailer, ctx, storage, mail_to("ada@example.com", sender="jürgen@example.com"))


def test_a_server_with_smtputf8_gets_such_addresses(mailer: Mailer, server: Server, ctx: Context, storage: FileStorage):
    assert send(mailer, ctx, storage, mail_to("jürgen@bücher.example", "a@example.com")).refused == ()
    assert server.mails[0][1] == ["jürgen@xn--bcher-kva.example", "a@example.com"]


def test_the_date_is_when_the_mail_is_sent(mailer: Mailer, server: Server, storage: FileStorage):
    week_ago = datetime.now(UTC) - timedelta(days=7)
    before = int(time.time())
    send(mailer, Context(job_id=derived_id(week_ago, "x"), enqueued_at=week_ago), storage)
    assert parsedate_to_datetime(str(server.mails[0][2]["Date"])).timestamp() >= before


def test_lines_that_start_with_dots_arrive_and_all_is_seven_bit(
    mailer: Mailer, server: Server, ctx: Context, storage: FileStorage
):
    text = ".\n..two\nä " + "long " * 400 + "\n.end"
    send(mailer, ctx, storage, mail_to("a@example.com", text=text))
    mail = server.mails[0][2]
    assert mail.get_content().replace("\r\n", "\n").rstrip("\n") == text
    assert mail["Content-Transfer-Encoding"] in ("quoted-printable", "base64")
