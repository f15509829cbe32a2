"""Scopes: whose jobs and dead letters a caller may see and act on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import sqlalchemy as sa

from penstock.ledger.sql.tables import dead_letters, jobs
from penstock.schemas.jobs.kind import registry

UNREAD = dead_letters.c.raw.is_not(None).label("unread")
"""Whether its message never became a job."""
SCOPED = (dead_letters.c.kind, dead_letters.c.queue, jobs.c.tenant, UNREAD)
"""The columns by which `Scope.includes_dead_letter` decides; of dead letters joined with their jobs."""


@dataclass(frozen=True, slots=True)
class Scope:
    """The bounds of a caller.

    Attributes:
        kinds, queues: patterns, such as `invoice.*`; None: all.
        tenants: names; None: all tenants, and jobs without one.
    """

    kinds: tuple[str, ...] | None = None
    queues: tuple[str, ...] | None = None
    tenants: tuple[str, ...] | None = None

    @property
    def is_bounded(self) -> bool:
        return (self.kinds, self.queues, self.tenants) != (None, None, None)

    def includes(self, kind: str | None, queue: str | None, tenant: str | None) -> bool:
        """Whether jobs of this kind, queue and tenant are within the bounds."""
        if self.tenants is not None and tenant not in self.tenants:
            return False
        return matches_any(kind, self.kinds) and matches_any(queue, self.queues)

    def includes_queue(self, queue: str) -> bool:
        return matches_any(queue, self.queues)

    def includes_dead_letter(self, row: Any) -> bool:
        """Whether this row of `SCOPED` is within the bounds.

        A message that never became a job may name any kind. Where kinds are bounded, it counts only under one that
        this process knows.
        """
        kind = row.kind
        if row.unread and self.kinds is not None:
            declared = registry.find(kind or "")
            kind = None if declared is None else declared.name
        return self.includes(kind, row.queue, row.tenant)

    def conditions(self) -> list[sa.ColumnElement[bool]]:
        """Conditions on dead letters joined with their jobs, for the database to leave most of the others out.

        Rows that are outside of the bounds may pass: see `may_match`, and `includes_dead_letter` about aliases.
        """
        conditions: list[sa.ColumnElement[bool]] = []
        if self.kinds is not None:
            conditions.append(sa.or_(may_match(dead_letters.c.kind, self.kinds), dead_letters.c.raw.is_not(None)))
        if self.queues is not None:
            conditions.append(may_match(dead_letters.c.queue, self.queues))
        if self.tenants is not None:
            conditions.append(jobs.c.tenant.in_(self.tenants))
        return conditions


EVERYTHING = Scope()


def matches_any(name: str | None, patterns: Sequence[str] | None) -> bool:
    """Whether a name matches one of these patterns, as a shell matches. True if patterns is None."""
    return patterns is None or (name is not None and any(fnmatchcase(name, pattern) for pattern in patterns))


def may_match(column: sa.Column[str], patterns: Sequence[str]) -> sa.ColumnElement[bool]:
    """Condition that holds for all values that match one of these patterns (`matches_any`), and perhaps for more.

    Some databases take capital and small letters as equal, and none knows `[a-z]`.
    """
    condition: sa.ColumnElement[bool] = sa.false()
    for pattern in patterns:
        like, bracket, _ = pattern.partition("[")
        for plain, escaped in (("!", "!!"), ("%", "!%"), ("_", "!_"), ("*", "%"), ("?", "_")):
            like = like.replace(plain, escaped)
        condition = sa.or_(condition, column.like(like + "%" if bracket else like, escape="!"))
    return condition
