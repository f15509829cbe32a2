"""Jobs of a key that have not ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from penstock.ledger.sql.tables import jobs
from penstock.schemas.jobs.kind import registry


def select_by_key(key: str, kind: str | None, tenant: str | None) -> sa.Select[Any]:
    """Jobs with this key, by id.

    Arguments:
        kind, tenant: None: of any.
    """
    select = sa.select(jobs.c.id, jobs.c.kind, jobs.c.state, jobs.c.key, jobs.c.tenant, jobs.c.expires_at)
    select = select.where(jobs.c.key == key).order_by(jobs.c.id)
    if kind is not None:
        declared = registry.find(kind)
        select = select.where(jobs.c.kind.in_([kind, *(declared.aliases if declared else ())]))
    return select if tenant is None else select.where(jobs.c.tenant == tenant)


def exact(rows: Sequence[Any], key: str, tenant: str | None) -> list[Any]:
    """Rows with exactly this key and tenant. MariaDB's default collation is case-insensitive."""
    return [row for row in rows if row.key == key and tenant in (None, row.tenant)]


def kind_name(kind: str) -> str:
    """Kind or alias → kind."""
    declared = registry.find(kind)
    return kind if declared is None else declared.name


def selection_detail(key: str, kind: str | None, tenant: str | None) -> dict[str, str]:
    """The selection, for the audit log."""
    selection = {"key": key, "kind": kind, "tenant": tenant}
    return {name: value for name, value in selection.items() if value is not None}
