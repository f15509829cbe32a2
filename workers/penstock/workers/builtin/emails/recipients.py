"""Recipients of a job, and who gets their mail where not all may."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from penstock.config.sections.builtin.emails import EmailsSettings
from penstock.schemas.builtin.emails import SendEmail
from penstock.workers.builtin.emails.addresses import ascii_domain, ascii_mailbox, mailbox

NOT_ALLOWED = (550, "allow of [emails] does not have the address")

Takers = dict[str, list[str]]
"""Address that the server is given → recipients whose mail it gets."""


def recipients_of(job: SendEmail) -> tuple[str, ...]:
    """Bare addresses, each once, however it is written."""
    addresses = job.deliver_to or (*job.to, *job.cc, *job.bcc)
    return tuple({ascii_mailbox(address): mailbox(address) for address in reversed(addresses)}.values())[::-1]


def takers_of(recipients: Iterable[str], settings: EmailsSettings) -> Takers:
    """Addresses to send to: the recipients that `allow` has, and `catch_all` for the others.

    Those that get nothing are in no entry.
    """
    takers: Takers = {}
    for recipient in recipients:
        if is_allowed(recipient, settings):
            takers.setdefault(recipient, []).append(recipient)
        elif settings.catch_all is not None:
            takers.setdefault(mailbox(settings.catch_all), []).append(recipient)
    return takers


def is_allowed(recipient: str, settings: EmailsSettings) -> bool:
    """Whether mails may go to this address itself."""
    if not settings.allow:
        return settings.catch_all is None
    address = ascii_mailbox(recipient).lower()
    return any(fnmatchcase(address, _ascii_pattern(pattern)) for pattern in settings.allow)


def _ascii_pattern(pattern: str) -> str:
    """`*@Bücher.example` → `*@xn--bcher-kva.example`."""
    local, _, domain = pattern.lower().rpartition("@")
    return f"{local}@{ascii_domain(domain)}"
