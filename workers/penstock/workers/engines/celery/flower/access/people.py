"""People who are logged in, and their roles."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from penstock.config.sections.console import ConsoleUser
from penstock.ledger.members.controls import Control
from penstock.ledger.queries.scope import EVERYTHING, Scope, matches_any


class Role(enum.IntEnum):
    """A role includes those before it."""

    VIEWER = 1
    """Looks."""
    OPERATOR = 2
    """Acts on jobs, queues, schedules and workers."""
    ADMIN = 3
    """Acts on what concerns all, such as pausing everything."""

    def __str__(self) -> str:
        return self.name.lower()

    @classmethod
    def named(cls, name: str) -> Role:
        """Role of its name in the settings."""
        return cls[name.upper()]


@dataclass(frozen=True, slots=True)
class Person:
    """Someone who is logged in.

    Attributes:
        name: as the audit log has it.
        scope: the kinds, queues and tenants that exist for this person.
    """

    name: str
    role: Role
    scope: Scope = EVERYTHING

    @classmethod
    def of(cls, user: ConsoleUser, role: Role | None = None) -> Person:
        """The person of an entry of `[[console.users]]`, with its role or a higher one."""
        scope = Scope(user.kinds, user.queues, user.tenants) if user.is_bounded else EVERYTHING
        return cls(user.name, max(Role.named(user.role), role or Role.VIEWER), scope)

    def may_see(self, control: Control) -> bool:
        """Whether a control is about something that exists for this person."""
        if control.scope == "queue":
            return self.scope.includes_queue(control.name)
        return control.scope == "all" or matches_any(control.name, self.scope.kinds)

    def may(self, role: Role) -> bool:
        return self.role >= role

    @property
    def bounds(self) -> str:
        """Its scope in words, such as `kinds invoice.*; tenants acme`; empty: everything."""
        parts = (("kinds", self.scope.kinds), ("queues", self.scope.queues), ("tenants", self.scope.tenants))
        return "; ".join(f"{name} {', '.join(values)}" for name, values in parts if values is not None)
