"""`email.send`: rendering, attachments, and the job's outcome for each answer of the server."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from email.message import EmailMessage
from email.utils import format_datetime, parseaddr
from pathlib import Path
from typing import Any

from penstock.config.errors import InvalidKey, ObjectNotFound
from penstock.config.sections.builtin.emails import EmailsSettings
from penstock.config.settings import Settings
from penstock.schemas.builtin.emails import EmailSent, Refusal, SendEmail
from penstock.schemas.wire.ids import made_at
from penstock.workers.builtin.emails.transport import Mailer, MailRefused, MailUnavailable, safe_name
from penstock.workers.handlers.context import Context
from penstock.workers.handlers.registry import handles
from penstock.workers.handlers.resources import provides
from penstock.workers.handlers.returns import Permanent, Retry
from penstock.workers.handlers.storage import Storage, storage_of

SHIPPED = Path(__file__).parent / "templates"
PUT_OFF = timedelta(minutes=5)
"""Delay for recipients that a server put off while it accepted others; greylisting accepts mail after that."""


@dataclass(frozen=True, slots=True)
class Content:
    subject: str
    text: str | None
    html: str | None


class Templates:
    """`NAME.subject.txt`, `NAME.txt` and `NAME.html`, looked for in the user's folder, then among the shipped ones."""

    def __init__(self, folder: str | None = None) -> None:
        from jinja2 import (
            ChoiceLoader,
            FileSystemLoader,
            StrictUndefined,
        )  # imported lazily: only workers that send mail need it
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        folders = [SHIPPED] if folder is None else [Path(folder).absolute(), SHIPPED]
        self._environment = ImmutableSandboxedEnvironment(
            loader=ChoiceLoader([FileSystemLoader(each) for each in folders]),
            autoescape=lambda name: name is not None and name.endswith(".html"),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )

    def render(self, name: str, variables: dict[str, Any]) -> Content:
        """Fill a template.

        Raises:
            Permanent: there is none, it is broken, or a variable is missing; names it.
        """
        subject = self._part(f"{name}.subject.txt", variables)
        text, html = self._part(f"{name}.txt", variables), self._part(f"{name}.html", variables)
        if subject is None or (text is None and html is None):
            raise Permanent(f"email template {name!r} needs {name}.subject.txt, and {name}.txt or {name}.html")
        # A variable with line breaks must not begin another header.
        return Content(" ".join(subject.split()), text, html)

    def _part(self, file: str, variables: dict[str, Any]) -> str | None:
        from jinja2 import TemplateNotFound

        try:
            template = self._environment.get_template(file)
        except TemplateNotFound:
            return None
        except Exception as error:
            raise Permanent(f"email template {file}: {error}") from error
        try:
            return template.render(variables)
        except TemplateNotFound as error:
            raise Permanent(f"email template {file}: {error.name!r}, which it includes, is missing") from error
        except Exception as error:  # a template can fail like any code, and will again with the same variables
            raise Permanent(f"email template {file}: {error}") from error


@provides
def open_templates(settings: Settings) -> Iterator[Templates]:
    yield Templates(settings.emails.templates)


@handles(SendEmail)
def send_email(
    job: SendEmail, ctx: Context, mailer: Mailer, templates: Templates, storage: Storage, settings: Settings
) -> EmailSent | Retry:
    """Send one mail.

    SMTP cannot make this exactly once: if a worker dies, or the connection breaks, after the server took the mail and
    before that is recorded, the next attempt sends it again. Both copies have the same Message-ID and Date, by which
    many receivers show one; a maildir folder takes only one.

    A refusal for good (5xx) is a Permanent failure; one for now, or a server out of reach, is a Retry. Where a server
    takes some recipients, the job succeeds and its result names the others; those it put off get a job of their own.

    Raises:
        Permanent: refused, the mail cannot be made of this message, or its sender or an attachment is not its tenant's.
    """
    message = _message(job, ctx, templates, storage_of(ctx.tenant, storage, settings), settings.emails)
    sender = parseaddr(str(message["From"]))[1]
    recipients = tuple(dict.fromkeys(job.deliver_to or (*job.to, *job.cc, *job.bcc)))
    ctx.check_cancelled()
    try:
        delivered = mailer.deliver(message, sender, recipients)
    except MailRefused as error:
        raise Permanent(str(error)) from error
    except MailUnavailable as error:
        return Retry(reason=str(error))
    put_off = tuple(who for who, (code, _) in delivered.refused.items() if 400 <= code < 500)
    if put_off:
        ctx.enqueue(job.with_changes({"deliver_to": put_off}), delay=PUT_OFF, key=f"{ctx.job_id}:put-off")
    return EmailSent(
        message_id=str(message["Message-ID"]),
        accepted=tuple(who for who in recipients if who not in delivered.refused),
        refused=tuple(
            Refusal(address=who, code=code, reason=reason) for who, (code, reason) in delivered.refused.items()
        ),
        already_delivered=delivered.already,
    )


def _message(
    job: SendEmail, ctx: Context, templates: Templates, storage: Storage, settings: EmailsSettings
) -> EmailMessage:
    if job.template is not None:
        content = templates.render(job.template, job.variables)
    else:
        content = Content(job.subject or "", job.text, job.html)
    message = EmailMessage()
    sender = _sender(job, ctx.tenant, settings)
    headers = {
        "From": sender,
        "To": ", ".join(job.to),
        "Cc": ", ".join(job.cc),
        "Reply-To": ", ".join(job.reply_to),
        "Subject": content.subject,
        "Date": format_datetime(
            made_at(ctx.job_id) or ctx.enqueued_at
        ),  # of the job, not the attempt: a repeated mail is the same mail
        "Message-ID": message_id(ctx.job_id, parseaddr(sender)[1]),
        "Auto-Submitted": "auto-generated",  # keeps out-of-office replies away, RFC 3834
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
    _attach(message, job, storage, settings.max_attachment_bytes)
    return message


def _sender(job: SendEmail, tenant: str | None, settings: EmailsSettings) -> str:
    if tenant is None:
        return job.sender or settings.sender
    try:
        allowed = settings.senders_of(tenant)
    except ValueError as error:
        raise Permanent(f"{error}; list its addresses by name in [emails.senders]") from error
    if job.sender is None:
        return allowed[0]
    if _mailbox(job.sender) not in map(_mailbox, allowed):
        addresses = ", ".join(parseaddr(address)[1] for address in allowed)
        raise Permanent(
            f"tenant {tenant!r} may not send from {job.sender!r}, but from {addresses}; add the address to those of "
            "the tenant in [emails.senders]"
        )
    return job.sender


def _mailbox(address: str) -> tuple[str, str]:
    name, _, host = parseaddr(address)[1].rpartition("@")
    return name, host.lower()


def _attach(message: EmailMessage, job: SendEmail, storage: Storage, limit: int) -> None:
    left = limit
    for attachment in job.attachments:
        try:
            stored = storage.find(attachment.key)
            if stored is None:
                raise Permanent(f"attachment {attachment.key!r} is not in the storage")
            with storage.read(attachment.key) as stream:
                content = b""
                while len(content) <= left and (chunk := stream.read(left + 1 - len(content))):
                    content += chunk
        except (InvalidKey, ObjectNotFound) as error:
            raise Permanent(f"attachment: {error}") from error
        if len(content) > left:
            raise Permanent(f"attachment {attachment.key!r}: max_attachment_bytes is {limit} for all together")
        left -= len(content)
        main, _, sub = (attachment.media_type or stored.media_type).partition(";")[0].partition("/")
        # add_attachment wants a part of type message to be a message, and has no use for a nested multipart.
        if main in ("message", "multipart") or not sub:
            main, sub = "application", "octet-stream"
        name = attachment.filename or attachment.key.rpartition("/")[2]
        message.add_attachment(content, maintype=main, subtype=sub.strip(), filename=name)


def message_id(job_id: str, sender: str) -> str:
    """`<job id@domain>`; an id in letters that a Message-ID cannot hold is hashed."""
    try:
        domain = sender.rpartition("@")[2].encode("idna").decode()
    except UnicodeError:  # a label that is empty or too long
        domain = ""
    return f"<{safe_name(job_id).replace('@', '.')}@{domain or 'localhost'}>"
