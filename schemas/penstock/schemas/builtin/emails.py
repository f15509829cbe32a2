"""`email.send`: one mail, from a template or written out."""

from __future__ import annotations

import re
from datetime import timedelta
from email.utils import parseaddr, quote
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from penstock.schemas.jobs.job import Job
from penstock.schemas.jobs.retry_policy import RetryPolicy
from penstock.schemas.jobs.sensitive import Sensitive

LONGEST_HEADER = 998
"""Characters of a header's value (RFC 5322, section 2.1.1, for a line)."""
_NO_CONTROL = r"^[^\x00-\x1f\x7f]*$"
"""A line break in a header would begin another header."""


_PART = "[A-Za-z0-9_][A-Za-z0-9_-]*"

_OURS = frozenset(
    {"from", "sender", "to", "cc", "bcc", "reply-to", "subject", "date", "message-id", "return-path", "received"}
)
_HEADER = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,70}")


def _one_or_many(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


_NAMED = re.compile(r'\s*(?:"((?:[^"\\]|\\.)*)"|([^"<>@]*?))\s*<([^<>]*)>\s*')


def _named_address(value: str) -> str:
    """`Name <a@b>` or `a@b`, the name quoted where it must be."""
    from email_validator import EmailNotValidError, validate_email  # late: few programs that import this send mail

    if not value.isprintable():
        raise ValueError("the address has a line break or another control character")
    match = _NAMED.fullmatch(value)
    quoted, plain, bare = match.groups() if match else (None, "", value.strip())
    name = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else plain
    try:
        address = validate_email(bare, check_deliverability=False).normalized
    except EmailNotValidError as error:
        raise ValueError(f"{error} Write a@b or Name <a@b>, and a list for several") from None
    if not name:
        return address
    simple = all(character.isalnum() or character in " '-_" for character in name)
    return f"{name} <{address}>" if simple else f'"{quote(name)}" <{address}>'


Address = Annotated[str, AfterValidator(_named_address), WithJsonSchema({"type": "string", "format": "name-email"})]
"""`ada@example.com`, or with a name: `Ada Lovelace <ada@example.com>`."""
Addresses = Annotated[tuple[Address, ...], BeforeValidator(_one_or_many)]
"""An address, or several."""


class Attachment(BaseModel):
    """An object of the storage to attach."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str = Field(min_length=1, max_length=1024)
    filename: str | None = Field(default=None, min_length=1, max_length=255, pattern=_NO_CONTROL)
    """None: the last part of the key."""
    media_type: str | None = Field(default=None, pattern=r"^[a-z]+/[A-Za-z0-9.+-]+$")
    """None: as the storage says."""
    content_id: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,100}$")
    """Shows it inside the HTML, where that has `<img src="cid:ID">`. None: an attachment of its own."""


class SendEmail(
    Job,
    kind="email.send",
    queue="emails",
    timeout=180,
    # The handler counts the attempts that it asks for itself, by [emails]; an error of its code ends sooner.
    retry=RetryPolicy(
        max_attempts=1000,
        first_delay=timedelta(seconds=30),
        factor=3,
        max_delay=timedelta(hours=4),
        by_error={Exception: RetryPolicy(max_attempts=12)},
    ),
):
    """Send one mail. Give `template` and `variables`, or `subject` with `text`, `html` or both."""

    to: Addresses = Field(min_length=1, max_length=100)
    cc: Addresses = Field(default=(), max_length=100)
    bcc: Addresses = Field(default=(), max_length=100)
    reply_to: Addresses = Field(default=(), max_length=10)
    sender: Address | None = None
    """None: as `[emails] from` says."""

    headers: dict[str, str] = Field(default_factory=dict, max_length=30)
    """Additional headers, such as `X-Campaign`: name → value, not those that Penstock writes itself."""
    unsubscribe_url: Sensitive[str | None] = Field(default=None, max_length=900, pattern=r"^https://[!-;=?-~]+$")
    """Address that takes the recipient off the list by a POST (RFC 8058, one-click), and shows a page to a GET.

    It is the recipient's own, so the mail has only one.
    """

    template: str | None = Field(default=None, max_length=200, pattern=rf"^{_PART}(?:/{_PART})*$")
    """Name of a template; may lie in folders, as `orders/shipped`."""
    locale: str | None = Field(default=None, pattern=r"^[A-Za-z]{2,8}(?:-[A-Za-z0-9]{1,8}){0,3}$")
    """Language of the template, as `de-AT`: looked for in the folder `de-AT`, then `de`, then without one."""
    variables: Sensitive[dict[str, JsonValue]] = Field(default_factory=dict)
    subject: Sensitive[str | None] = Field(default=None, min_length=1, max_length=998, pattern=_NO_CONTROL)
    text: Sensitive[str | None] = None
    html: Sensitive[str | None] = None
    attachments: tuple[Attachment, ...] = Field(default=(), max_length=50)

    deliver_to: Addresses = ()
    """Only these of the recipients get it, though the headers name all: those a server put off the first time."""

    @field_validator("headers")
    @classmethod
    def _own_headers(cls, headers: dict[str, str]) -> dict[str, str]:
        lower = [name.lower() for name in headers]
        for name, value in headers.items():
            if not _HEADER.fullmatch(name):
                raise ValueError(f"{name!r} is not a header's name; use letters, digits and hyphens")
            if name.lower() in _OURS or name.lower().startswith(("content-", "mime-", "dkim-", "arc-", "resent-")):
                raise ValueError(f"header {name} is written by Penstock; use the field of the job, or leave it out")
            if lower.count(name.lower()) > 1:
                raise ValueError(f"header {name} is there twice")
            if not value.isprintable() or not value.strip() or len(value) > LONGEST_HEADER:
                raise ValueError(
                    f"header {name}: give printable text without line breaks, at most {LONGEST_HEADER} characters"
                )
        return headers

    @model_validator(mode="after")
    def _one_way(self) -> SendEmail:
        written = self.subject is not None or self.text is not None or self.html is not None
        if self.template is not None and written:
            raise ValueError("give a template, or subject with text or html, not both")
        if self.template is None and (self.subject is None or (self.text is None and self.html is None)):
            raise ValueError("give a template, or subject with text or html")
        if self.template is None and self.variables:
            raise ValueError("variables need a template")
        if self.template is None and self.locale is not None:
            raise ValueError("locale needs a template")
        if self.unsubscribe_url is not None and len({*self.to, *self.cc, *self.bcc}) > 1:
            raise ValueError("unsubscribe_url is of one recipient; send each a mail of their own")
        if self.unsubscribe_url is not None and "list-unsubscribe" in map(str.lower, self.headers):
            raise ValueError("give unsubscribe_url or a header List-Unsubscribe, not both")
        content_ids = [attachment.content_id for attachment in self.attachments if attachment.content_id is not None]
        if len(set(content_ids)) < len(content_ids):
            raise ValueError("two attachments have the same content_id")
        recipients = {parseaddr(address)[1] for address in (*self.to, *self.cc, *self.bcc)}
        if stranger := {parseaddr(address)[1] for address in self.deliver_to} - recipients:
            raise ValueError(f"deliver_to names {len(stranger)} addresses that are not among the recipients")
        return self


class Refusal(BaseModel):
    """A recipient whom the server did not take, while it took others."""

    address: str
    code: int
    """The SMTP reply: 5xx for good, 4xx for now."""
    reason: str


class EmailSent(BaseModel):
    message_id: str
    """The header `Message-ID`, made of the job's id: the same in every attempt."""
    accepted: tuple[str, ...]
    """Recipients the server took the mail for."""
    refused: tuple[Refusal, ...] = ()
    """Recipients that the server refused. Those put off (4xx) get a job of their own."""
    diverted: tuple[str, ...] = ()
    """Recipients whose mail went to `[emails] catch_all` in their place."""
    already_delivered: bool = False
    """An earlier attempt had delivered it, and nothing was sent (local mailbox folders can tell)."""
