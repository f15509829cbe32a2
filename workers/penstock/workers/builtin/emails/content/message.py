"""`EmailMessage` of a job: headers, text, attachments."""

from __future__ import annotations

from datetime import UTC, datetime
from email.message import EmailMessage

from penstock.config.sections.builtin.emails import EmailsSettings
from penstock.schemas.builtin.emails import SendEmail
from penstock.workers.builtin.emails.addresses import as_header, ascii_mailbox, mailbox
from penstock.workers.builtin.emails.content.attachments import attach
from penstock.workers.builtin.emails.content.html import CID, inline_css, text_of
from penstock.workers.builtin.emails.content.templating import Content, Templates
from penstock.workers.builtin.emails.flattened import Mail
from penstock.workers.handlers.returns import Permanent
from penstock.workers.handlers.storage import Storage

AUTOMATIC = {"Auto-Submitted": "auto-generated"}
"""Keeps out-of-office replies away (RFC 3834)."""


def compose(
    job: SendEmail, content: Content, *, sender: str, message_id: str, storage: Storage, settings: EmailsSettings
) -> Mail:
    """The mail of a job.

    Its Date is now: when it is ready to be sent (RFC 5322, section 3.6.1), however long the job was delayed.

    Raises:
        Permanent: the fields make no valid mail, or an attachment is missing or too large; StorageError.
    """
    from email import policy  # late, as in `[emails]`

    # 7bit: a server on the way must not encode the mail again, which would break its signature.
    message = EmailMessage(policy=policy.SMTP.clone(cte_type="7bit"))
    headers = {
        "From": as_header(sender),
        "To": [as_header(address) for address in job.to],
        "Cc": [as_header(address) for address in job.cc],
        "Reply-To": [as_header(address) for address in job.reply_to],
        "Subject": content.subject,
        "Date": datetime.now(UTC),
        "Message-ID": message_id,
        **({} if "auto-submitted" in map(str.lower, job.headers) else AUTOMATIC),
        **_unsubscribing(job.unsubscribe_url),
        **job.headers,
    }
    try:
        for name, value in headers.items():
            if value:
                message[name] = value
        if content.text is not None:
            message.set_content(content.text)
            if content.html is not None:
                message.add_alternative(content.html, subtype="html")
        else:
            message.set_content(content.html or "", subtype="html")
    except (ValueError, LookupError) as error:  # the email package refuses line breaks in headers
        raise Permanent(f"the fields do not make a valid mail: {error}") from error
    _check_references(content.html or "", job)
    mail = Mail(message)
    attach(mail, job.attachments, storage, settings.max_attachment_bytes)
    return mail


def _unsubscribing(url: str | None) -> dict[str, str]:
    if url is None:
        return {}
    return {"List-Unsubscribe": f"<{url}>", "List-Unsubscribe-Post": "List-Unsubscribe=One-Click"}


def content_of(job: SendEmail, templates: Templates, settings: EmailsSettings) -> Content:
    """Subject, text and HTML as they are sent. Raises Permanent: a template cannot be filled."""
    if job.template is not None:
        content = templates.render(job.template, job.variables, job.locale)
    else:
        content = Content(job.subject or "", job.text, job.html)
    html = inline_css(content.html) if content.html is not None and settings.inline_css else content.html
    text = text_of(html) if content.text is None and html is not None and settings.text_from_html else content.text
    return Content(content.subject, text, html)


def _check_references(html: str, job: SendEmail) -> None:
    """Raises Permanent: the HTML shows an image that is not attached."""
    ids = {attachment.content_id for attachment in job.attachments}
    if missing := sorted(set(CID.findall(html)) - ids):
        raise Permanent(f"the HTML shows cid:{missing[0]}, and no attachment has this content_id")


def sender_of(job: SendEmail, tenant: str | None, settings: EmailsSettings) -> str:
    """Address that the mail comes from, with its name. Raises Permanent: it is not one of the tenant's."""
    if tenant is None:
        return job.sender or settings.sender
    try:
        allowed = settings.senders_of(tenant)
    except ValueError as error:
        raise Permanent(f"{error}; list its addresses by name in [emails.senders]") from error
    if job.sender is None:
        return allowed[0]
    if _comparable(job.sender) not in map(_comparable, allowed):
        addresses = ", ".join(mailbox(address) for address in allowed)
        raise Permanent(
            f"tenant {tenant!r} may not send from {job.sender!r}, but from {addresses}; add the address to those of "
            "the tenant in [emails.senders]"
        )
    return job.sender


def _comparable(address: str) -> tuple[str, str]:
    name, _, host = ascii_mailbox(address).rpartition("@")
    return name, host.lower()
