"""The mail about a report: with a link, the file, or where it is."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError
from support.builtin.sales import Sales, build

from penstock.producers.storage import FileStorage, make_storage
from penstock.schemas.builtin.emails import SendEmail
from penstock.schemas.builtin.reports import BuildReport
from penstock.schemas.wire.codec import decode
from penstock.schemas.wire.ids import new_id
from penstock.workers import Context, Discard, Permanent
from penstock.workers.builtin.databases import Databases
from penstock.workers.builtin.emails.content.templating import Templates


def mail_of(ctx: Context) -> tuple[SendEmail, str]:
    """The mail that an attempt sends, and its text."""
    (envelope,) = ctx.outgoing
    mail = decode(envelope).job
    assert isinstance(mail, SendEmail)
    assert mail.template is not None
    content = Templates().render(mail.template, mail.variables)
    assert content.html is not None
    assert "file:" not in content.html
    return mail, content.text or ""


def test_the_file_of_a_folder_is_attached(sales: Sales, databases: Databases, storage: FileStorage, ctx: Context):
    result = build(ctx, sales, databases, storage, email_to=["a@example.com", "b@example.com"])
    mail, text = mail_of(ctx)
    assert mail.to == ("a@example.com", "b@example.com")
    assert [(each.key, each.media_type) for each in mail.attachments] == [(result.key, "text/csv")]
    assert "It is attached to this mail." in text
    assert "file:" not in text


def test_a_file_that_is_too_large_is_named_or_refused(sales: Sales, databases: Databases, storage: FileStorage):
    small = sales.settings().model_copy(
        update={"emails": sales.settings().emails.model_copy(update={"max_attachment_bytes": 10})}
    )

    def send(**job: Any) -> Context:
        ctx = Context(job_id=new_id())
        build(ctx, sales, databases, storage, small, email_to="a@example.com", **job)
        return ctx

    mail, text = mail_of(send())
    assert mail.attachments == ()
    assert "too large to be attached. Its key in the storage is reports/daily_sales/" in text
    with pytest.raises(Permanent, match=r"too large to be attached; it is in the storage at reports/daily_sales/"):
        send(email_as="attachment")


@pytest.mark.parametrize("count", [True, False])
def test_a_report_only_if_it_has_rows(sales: Sales, databases: Databases, storage: FileStorage, count: bool):
    def run(day: str) -> tuple[Any, Context]:
        ctx = Context(job_id=new_id())
        job = {"parameters": {"day": day}, "email_to": "a@example.com", "only_if_rows": True}
        return build(ctx, sales, databases, storage, sales.settings(count=count), **job), ctx

    result, ctx = run("2027-01-01")
    assert result == Discard("report 'daily_sales' has no rows")
    assert ctx.outgoing == []
    assert not storage.folder.exists()
    result, ctx = run("2026-01-01")
    assert result.rows == 20
    assert mail_of(ctx)[0].to == ("a@example.com",)


def test_a_link_into_a_folder_is_refused_before_the_query(
    sales: Sales, databases: Databases, storage: FileStorage, ctx: Context
):
    with pytest.raises(Permanent, match="storage_url is a folder, whose files have no links; use 'attachment'"):
        build(ctx, sales, databases, storage, email_to="a@example.com", email_as="link")
    assert not storage.folder.exists()


def test_a_report_on_s3_may_be_attached(sales: Sales, databases: Databases, s3_url: str, ctx: Context):
    storage = make_storage(s3_url)
    result = build(ctx, sales, databases, storage, email_to="a@example.com", email_as="attachment")
    mail, text = mail_of(ctx)
    assert [each.key for each in mail.attachments] == [result.key]
    assert "http" not in text
    storage.close()


def test_more_recipients_than_a_mail_takes_are_refused_by_the_producer():
    with pytest.raises(ValidationError, match="at most 100 items"):
        BuildReport(report="x", email_to=[f"a{number}@example.com" for number in range(101)])
