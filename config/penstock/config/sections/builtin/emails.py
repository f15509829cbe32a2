"""`[emails]`."""

from __future__ import annotations

from email.utils import parseaddr

from pydantic import ConfigDict, Field, field_validator

from penstock.config.sections.builtin.section import MEGABYTE, Section
from penstock.config.sections.tenants import EVERY, TENANT, Names, fill

MOST_ATTEMPTS = 1000


class EmailsSettings(Section):
    """`[emails]`: the sender, the templates and the limits."""

    model_config = ConfigDict(populate_by_name=True)

    sender: str = Field(default="Penstock <penstock@localhost>", alias="from")
    """`from = "Shop <shop@example.com>"`; a job without a tenant may name another."""
    senders: dict[str, Names] = Field(default_factory=dict)
    """Tenant → addresses that its mails may come from, the first if the job names none; those of `*` are for tenants
    that are not listed. `{tenant}` is the tenant's name. Without an entry: `from` alone."""
    allow: Names = ()
    """Addresses that mails may go to, as shell patterns: `*@example.com`. Empty: all, unless there is a `catch_all`.
    Mails to others go to `catch_all`; without one they are not sent. For systems that are tried out with real data."""
    catch_all: str | None = None
    """Gets the mails to all addresses that `allow` does not have."""
    templates: str | None = None
    """A folder looked into before the shipped templates."""
    text_from_html: bool = True
    """A mail with HTML alone gets a text made from it, for readers and filters that want one."""
    inline_css: bool = True
    """Rules of `<style>` are written into the elements, since some readers drop `<style>`. Media queries stay there."""
    connections: int = Field(default=4, ge=1, le=1000)
    """Connections to the mail server that one worker process holds at most, and mails that it builds at a time."""
    max_attachment_bytes: int = Field(default=20 * MEGABYTE, ge=0)
    """Limit for all attachments of one mail together."""
    unavailable_attempts: int = Field(default=24, ge=1, le=MOST_ATTEMPTS)
    """Attempts while the mail server or the storage is out of reach, puts the mail off, is at a limit of the account,
    or refuses the login. 24 take about a day and a half."""
    content_attempts: int = Field(default=1, ge=1, le=MOST_ATTEMPTS)
    """Attempts of a mail that is wrong or refused for good: a template or attachment is missing, or no such mailbox."""

    @field_validator("sender")
    @classmethod
    def _sender(cls, value: str) -> str:
        return _address(value)

    @field_validator("catch_all")
    @classmethod
    def _catch_all(cls, value: str | None) -> str | None:
        return None if value is None else _address(value)

    @field_validator("allow")
    @classmethod
    def _allow(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in value:
            if pattern.count("@") != 1 or not pattern.isprintable() or " " in pattern:
                raise ValueError(f"{pattern!r} is not a pattern of addresses; write *@example.com or ada@example.com")
        return value

    @field_validator("senders")
    @classmethod
    def _senders(cls, value: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        for tenant, addresses in value.items():
            if not addresses:
                raise ValueError(f"name an address for {tenant!r}, or remove the entry: then it sends as `from`")
            for address in addresses:
                _address(address.replace(TENANT, "tenant"))
        return value

    def senders_of(self, tenant: str) -> tuple[str, ...]:
        """The addresses that a tenant's mails may come from, its default first.

        Raises:
            ValueError: its name does not fit into an address that has `{tenant}`.
        """
        addresses = self.senders.get(tenant) or self.senders.get(EVERY) or (self.sender,)
        return tuple(fill(address, tenant) for address in addresses)


def _address(value: str) -> str:
    """The address, with or without a name. Raises ValueError."""
    from email.headerregistry import Address  # late: it takes half a megabyte

    name, address = parseaddr(value)
    try:
        if not value.isprintable():
            raise ValueError("it holds a line break or another control character")
        parsed = Address(name, addr_spec=address)
    except Exception as error:  # the parser has several of its own
        raise ValueError(f"not an address; write it as name@host or Name <name@host>: {error}") from error
    if not parsed.username or not parsed.domain:
        raise ValueError("not an address; write it as name@host or Name <name@host>")
    return value
