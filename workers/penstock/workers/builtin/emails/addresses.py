"""Addresses as SMTP and headers need them."""

from __future__ import annotations

import hashlib
import re
from email.utils import parseaddr
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from email.headerregistry import Address


def mailbox(address: str) -> str:
    """`Ada <ada@example.com>` → `ada@example.com`."""
    return parseaddr(address)[1]


def ascii_mailbox(address: str) -> str:
    """The bare address, its domain in ASCII (`ü@xn--bcher-kva.example`): then only its local part needs SMTPUTF8."""
    local, _, domain = mailbox(address).rpartition("@")
    return f"{local}@{ascii_domain(domain)}"


def ascii_domain(domain: str) -> str:
    """The domain as DNS has it (RFC 5891), or unchanged where it is not a valid one."""
    if domain.isascii():
        return domain
    import idna  # late: its tables take memory, and few domains need them

    try:
        return idna.encode(domain, uts46=True).decode()
    except idna.IDNAError:
        return domain


def as_header(address: str) -> Address:
    """The address with its name, for the `email` package."""
    from email.headerregistry import Address  # late: it takes half a megabyte

    name, bare = parseaddr(address)
    local, _, domain = bare.rpartition("@")
    return Address(name, local, ascii_domain(domain))


def message_id(job_id: str, sender: str) -> str:
    """`<job id@domain>`; an id in letters that a Message-ID cannot hold is hashed."""
    domain = ascii_domain(mailbox(sender).rpartition("@")[2])
    return f"<{safe_name(job_id).replace('@', '.')}@{domain if domain.isascii() and domain else 'localhost'}>"


def safe_name(text: str) -> str:
    """The text where it can be part of a file's name or a Message-ID as it is, else its hash."""
    inner = text.strip("<>")
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.@_-]{0,150}", inner) and ".." not in inner and inner[-1] != ".":
        return inner
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
