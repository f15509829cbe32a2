"""`sync.run`: page after page from an HTTP API into a table, going on where the last run stopped."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from sqlalchemy.exc import SQLAlchemyError

from penstock.config.sections.builtin.syncs import SyncSettings
from penstock.config.settings import Settings
from penstock.ledger.sql.faults import LASTING, describe, fault_of
from penstock.schemas.builtin.syncs import RunSync, SyncFinished
from penstock.workers.builtin.databases import Databases
from penstock.workers.builtin.syncs.changes import earlier, is_ahead, later, spelled
from penstock.workers.builtin.syncs.definitions import find_sync, missing_sync
from penstock.workers.builtin.syncs.pages import Page, Pages, StaleCursor
from penstock.workers.builtin.syncs.paging import is_url
from penstock.workers.builtin.syncs.positions import PositionConflict, SyncPosition
from penstock.workers.builtin.syncs.records import Batch, read_records
from penstock.workers.builtin.syncs.tables import SyncTable
from penstock.workers.handlers.context import Context
from penstock.workers.handlers.registry import handles
from penstock.workers.handlers.returns import Permanent, Retry, Snooze

_OTHER_RUN = timedelta(seconds=15)
"""Wait for another run of the same sync."""
_RESERVE = timedelta(seconds=60)
"""Time before the deadline at which an attempt makes place for the next, which goes on with the next page."""


@handles(RunSync, missing=missing_sync)
async def run_sync(
    job: RunSync, ctx: Context, databases: Databases, settings: Settings
) -> SyncFinished | Retry | Snooze:
    """Fetch what changed and upsert it by id.

    Each page and the position behind it are one transaction: whatever happens, the next attempt goes on with the page
    after the last one saved, and a page fetched twice writes the same rows. Two runs of one sync at a time do not mix:
    the later one finds the position moved, and waits without an attempt. An API or a database that is down is
    retried for days.

    Raises:
        Permanent: not a sync for its tenant, a 4xx, an answer or a table of another shape, signs of pages that the
            declared style does not lead to, a record that does not fit.
    """
    position_name, sync = find_sync(job, ctx.tenant, settings)
    engine = databases.engine(sync.database_url or settings.database_url)
    try:
        return await _run_from_position(job, ctx, sync, SyncTable(engine, position_name, sync))
    except SQLAlchemyError as error:
        if fault_of(error) in LASTING:
            raise
        return Retry(reason=f"sync {job.sync!r}: database: {describe(error)}")


async def _run_from_position(
    job: RunSync, ctx: Context, sync: SyncSettings, table: SyncTable
) -> SyncFinished | Retry | Snooze:
    import httpx  # imported lazily: only workers that run syncs need its memory

    now = datetime.now(UTC)
    position = await asyncio.to_thread(table.prepare)
    if job.full and position.job != ctx.job_id:
        position = position.restarted(ctx.job_id)
    if position.since is not None and is_ahead(position.since, now, sync.updated_as):
        ctx.log.warning("sync %s: the next start, %s, is in the future; reading everything", job.sync, position.since)
        position = replace(position.restarted(position.job), since=None)
    if position.page is None and sync.updated_until_param is not None:
        position = replace(position, until=spelled(now, sync.updated_as))
    if sync.updated is not None and sync.guard is None:
        ctx.log.warning("sync %s: no column has %s, so an older record may replace a newer one", job.sync, sync.updated)
    async with httpx.AsyncClient(timeout=sync.timeout_seconds, follow_redirects=False) as client:
        with settings_errors(job.sync):
            pages = Pages(client, job.sync, sync, ctx.deadline)
        return await _run(job, ctx, sync, table, pages, position)


async def _run(
    job: RunSync, ctx: Context, sync: SyncSettings, table: SyncTable, pages: Pages, position: SyncPosition
) -> SyncFinished | Retry | Snooze:
    result = SyncFinished(sync=job.sync, pages=0, fetched=0, inserted=0, updated=0, skipped=0, cursor=None)
    resumed = position.page is not None
    visited: set[str | None] = {position.page}
    while True:
        ctx.check_cancelled()
        if result.pages and ctx.deadline is not None and datetime.now(UTC) + _RESERVE > ctx.deadline:
            return Snooze(0, reason=f"sync {job.sync!r}: goes on behind page {result.pages} of this attempt")
        try:
            with settings_errors(job.sync):
                page = await pages.fetch(position, resumed=resumed)
        except StaleCursor:
            ctx.log.warning("sync %s: the saved cursor is refused, starting with the first page", job.sync)
            position, resumed, visited = position.restarted(position.job), False, set()
            continue
        if not isinstance(page, Page):
            return page
        if page.next is not None and page.next in visited:
            raise Permanent(f"sync {job.sync!r}: the server names a page twice; is `cursor_param` right?")
        visited.add(page.next)
        batch = await asyncio.to_thread(read_records, job.sync, sync, page.records, page.served_at)
        after = _after(position, page, batch, sync)
        try:
            saved = await asyncio.to_thread(table.save, batch, position, after, last=page.next is None)
        except PositionConflict:
            return Snooze(_OTHER_RUN, reason=f"sync {job.sync!r}: another run of it is under way")
        position, resumed = saved.position, False
        result = result.model_copy(
            update={
                "pages": result.pages + 1,
                "fetched": result.fetched + len(page.records),
                "inserted": result.inserted + saved.inserted,
                "updated": result.updated + saved.updated,
                "skipped": result.skipped + batch.skipped,
                "older": result.older + saved.older,
                "deleted": result.deleted + saved.deleted,
                "ahead": result.ahead + batch.ahead,
                "missing": sorted({*result.missing, *batch.missing}),
                "new_fields": sorted({*result.new_fields, *batch.new_fields}),
                "style": pages.style,
                "cursor": position.since or position.page,
            }
        )
        ctx.progress(result.fetched, None, f"{result.pages} pages")
        if page.next is None:
            _report(ctx, result)
            return result


def _report(ctx: Context, result: SyncFinished) -> None:
    """Log anything about the records that a person should look at."""
    if result.missing:
        ctx.log.warning("sync %s: records lack the fields of %s", result.sync, ", ".join(result.missing))
    if result.new_fields:
        ctx.log.info("sync %s: no column has the fields %s", result.sync, ", ".join(result.new_fields))
    if result.ahead:
        ctx.log.warning("sync %s: %d records have a change in the future", result.sync, result.ahead)


def _after(position: SyncPosition, page: Page, batch: Batch, sync: SyncSettings) -> SyncPosition:
    """The position once a page is saved."""
    seen = later(position.seen, batch.seen)
    if page.next is not None:
        records, pages = position.fetched(len(page.records))
        bad = position.bad + len(batch.bad)
        return replace(position, page=page.next, seen=seen, records=records, pages=pages, bad=bad)
    if sync.updated is not None:
        return SyncPosition(since=later(position.since, earlier(seen, position.until)))
    if sync.pages.style in ("auto", "cursor") and position.page is not None and not is_url(position.page):
        # Without a time of change, the page of the last cursor is where new records will turn up.
        return SyncPosition(page=position.page)
    return SyncPosition()


@contextmanager
def settings_errors(name: str) -> Iterator[None]:
    """Translate httpx errors about wrong settings, raised before anything is sent, into Permanent."""
    import httpx

    try:
        yield
    except (httpx.InvalidURL, httpx.UnsupportedProtocol, UnicodeEncodeError) as error:
        raise Permanent(f"sync {name!r}: {error}") from error
