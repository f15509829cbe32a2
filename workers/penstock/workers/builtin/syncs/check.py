"""Dry run of a sync: its first pages are read and mapped, and nothing is written."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from penstock.config.settings import Settings
from penstock.schemas.builtin.syncs import RunSync
from penstock.workers.builtin.syncs.definitions import find_sync
from penstock.workers.builtin.syncs.handler import settings_errors
from penstock.workers.builtin.syncs.pages import Page, Pages
from penstock.workers.builtin.syncs.positions import SyncPosition
from penstock.workers.builtin.syncs.records import BadRecord, read_records
from penstock.workers.handlers.returns import Permanent

PAGES = 2


@dataclass(frozen=True, slots=True)
class CheckedPage:
    """A page of a dry run: the number of its records, a row that it would write, and its bad records."""

    number: int
    records: int
    rows: int
    example: dict[str, Any] | None
    bad: list[BadRecord]
    missing: list[str]
    new_fields: list[str]
    style: str
    next: str | None


async def check_sync(name: str, tenant: str | None, settings: Settings) -> list[CheckedPage]:
    """Read the first two pages of a sync, from its beginning, without its database.

    Raises:
        Permanent: no such sync, not one for this tenant, or an answer that a run would fail with or wait for.
    """
    import httpx

    _, sync = find_sync(RunSync(sync=name), tenant, settings)
    lenient = sync.model_copy(update={"on_bad_record": "keep"})
    position, checked = SyncPosition(), list[CheckedPage]()
    async with httpx.AsyncClient(timeout=sync.timeout_seconds, follow_redirects=False) as client:
        with settings_errors(name):
            pages = Pages(client, name, sync, None)
        while len(checked) < PAGES and (not checked or position.page is not None):
            with settings_errors(name):
                page = await pages.fetch(position)
            if not isinstance(page, Page):
                raise Permanent(page.reason or "the server asks to wait")
            batch = read_records(name, lenient, page.records, page.served_at)
            checked.append(
                CheckedPage(
                    number=len(checked) + 1,
                    records=len(page.records),
                    rows=len(batch.rows),
                    example=batch.rows[0] if batch.rows else None,
                    bad=batch.bad,
                    missing=sorted(batch.missing),
                    new_fields=sorted(batch.new_fields),
                    style=pages.style,
                    next=page.next,
                )
            )
            records, count = position.fetched(len(page.records))
            position = replace(position, page=page.next, records=records, pages=count)
    return checked
