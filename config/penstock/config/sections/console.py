"""`[console]`: who may look at and act in the operator's console."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from penstock.config.sections.passwords import HashText
from penstock.config.sections.tenants import Names

RoleName = Literal["viewer", "operator", "admin"]
"""Each includes those before it: a viewer looks, an operator acts on jobs and workers, an admin on all at once."""
ROLES: tuple[RoleName, ...] = ("viewer", "operator", "admin")
Network = IPv4Network | IPv6Network
_HEADER = r"^[A-Za-z0-9-]{1,64}$"
_NAME = re.compile(r"[^\x00-\x1f\x7f:]{1,200}")


def _one_or_many(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


class ConsoleUser(BaseModel):
    """`[[console.users]]`: a person with a role, and the kinds, queues and tenants that exist for this person.

    With a `password_hash` it is a login of the console's own; without, someone whom a proxy or OAuth names.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    """As a login, a proxy's header or OAuth has it, and as it is in the audit log."""
    password_hash: HashText | None = Field(default=None, repr=False)
    """As `penstock console hash-password` prints it."""
    role: RoleName = "viewer"
    kinds: Annotated[tuple[str, ...] | None, BeforeValidator(_one_or_many)] = None
    """Patterns, such as `invoice.*`. None: all kinds."""
    queues: Annotated[tuple[str, ...] | None, BeforeValidator(_one_or_many)] = None
    """Patterns. None: all queues."""
    tenants: Names | None = None
    """Names. None: all tenants, and jobs without one."""

    @field_validator("name")
    @classmethod
    def _plain(cls, value: str) -> str:
        if not _NAME.fullmatch(value) or value != value.strip():
            raise ValueError(f"{value!r} is not a name: 1 to 200 characters, without a colon")
        return value

    @property
    def is_bounded(self) -> bool:
        return (self.kinds, self.queues, self.tenants) != (None, None, None)


class ConsoleSettings(BaseModel):
    """`[console]`: users of the console, or who names them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    users: tuple[ConsoleUser, ...] = ()
    proxy_header: str | None = Field(default=None, pattern=_HEADER)
    """The header in which a trusted proxy names the person, such as `X-Forwarded-User`. None: no proxy is trusted."""
    groups_header: str | None = Field(default=None, pattern=_HEADER)
    """The header in which it names the person's groups, with commas between, such as `X-Forwarded-Groups`."""
    proxies: tuple[Network, ...] = (IPv4Network("127.0.0.1/32"), IPv6Network("::1/128"))
    """Addresses of the trusted proxy. From any other, a request with its header is refused."""
    groups: dict[str, RoleName] = Field(default_factory=dict)
    """`[console.groups]`: role of each group in `groups_header`."""
    roles: dict[str, RoleName] = Field(default_factory=dict)
    """`[console.roles]`: role by name or address, of people whom a proxy or OAuth names; keys are patterns, such as
    `*@example.com`. Of several that match, the highest counts."""
    metrics_login: bool = True
    """Whether Flower's `/metrics` asks for a login."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [user.name for user in self.users]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"users: {', '.join(twice)} is there twice")
        if self.groups_header and not self.proxy_header:
            raise ValueError("groups_header needs proxy_header, which names the person")
        if self.groups and not self.groups_header:
            raise ValueError("groups needs groups_header, which names them")
        if self.proxy_header and not (self.groups or self.roles or any(not user.password_hash for user in self.users)):
            raise ValueError(
                "proxy_header lets no one in: name roles in [console.roles], [console.groups] or [[console.users]]"
            )
        if self.proxy_header and not self.proxies:
            raise ValueError("proxy_header needs the addresses of the proxy, in proxies")
        return self

    def user(self, name: str) -> ConsoleUser | None:
        return next((user for user in self.users if user.name == name), None)

    def trusts(self, address: str) -> bool:
        """Whether a request from this address may name a person in `proxy_header`."""
        try:
            peer: IPv4Address | IPv6Address = ip_address(address)
        except ValueError:  # a socket of this machine's file system
            return False
        if isinstance(peer, IPv6Address) and peer.ipv4_mapped is not None:
            peer = peer.ipv4_mapped
        return any(peer in network for network in self.proxies)

    def role_of(self, name: str, groups: tuple[str, ...] = ()) -> RoleName | None:
        """The role of someone whom a proxy or OAuth names, by `roles` and `groups`. None: neither has one."""
        granted = [role for pattern, role in self.roles.items() if fnmatchcase(name.lower(), pattern.lower())]
        return highest(granted + [role for group, role in self.groups.items() if group in groups])


def highest(roles: list[RoleName]) -> RoleName | None:
    return max(roles, key=ROLES.index, default=None)


def usable(settings: ConsoleSettings, environment: Mapping[str, str]) -> bool:
    """Whether someone can log in without a login in the environment: by a hash, through a proxy or by OAuth."""
    by_hash = any(user.password_hash for user in settings.users)
    return by_hash or settings.proxy_header is not None or bool(environment.get("FLOWER_AUTH"))
