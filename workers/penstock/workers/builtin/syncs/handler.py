"""`sync.run`: page after page from an HTTP API into a table, going on where the last run stopped."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from penstock.config.sections.builtin.syncs import SyncSettings
from penstock.config.sections.values import read_value
from penstock.config.settings import Settings
from penstock.schemas.builtin.paths import find
from penstock.schemas.builtin.syncs import RunSync, SyncFinished
from penstock.workers.builtin.databases import Databases
from penstock.workers.builtin.syncs.pages import Page, Pages, StaleCursor
from penstock.workers.builtin.syncs.tables import MAX_ID, PositionConflict, SyncPosition, SyncTable
from penstock.workers.handlers.context import Context
from penstock.workers.handlers.registry import handles
from penstock.workers.handlers.returns import Permanent, Retry, Snooze


@handles(RunSync)
async def run_sync(
    job: RunSync, ctx: Context, databases: Databases, settings: Settings
) -> SyncFinished | Retry | Snooze:
    """Fetch what changed and upsert it by id.

    Each page and the position behind it are one transaction: whatever happens, the next attempt goes on with the page
    after the last one saved, and a page fetched twice writes the same rows. Two runs of one sync at a time do not mix:
    the later one finds the position moved and is retried.

    Raises:
        Permanent: no such sync, not one for its tenant, a 4xx, an answer or a table of another shape, a record that
            does not fit.
        SQLAlchemyError: worth another try.
    """
    import httpx  # imported lazily: only workers that run syncs need its memory

    position_name, sync = _find_sync(job, ctx.tenant, settings)
    engine = databases.engine(sync.database_url or settings.database_url)
    table = SyncTable(engine, position_name, sync)
    position = await asyncio.to_thread(table.prepare)
    if job.full and position.job != ctx.job_id:
        position = position.restarted(ctx.job_id)
    async with httpx.AsyncClient(timeout=sync.timeout_seconds, follow_redirects=False) as client:
        with _settings_errors(job.sync):
            pages = Pages(client, job.sync, sync, ctx.deadline)
        return await _run(job, ctx, sync, table, pages, position)


def _find_sync(job: RunSync, tenant: str | None, settings: Settings) -> tuple[str, SyncSettings]:
    """The name under which its position is kept, and its settings, with `{tenant}` replaced."""
    sync = settings.syncs.get(job.sync)
    if sync is None:
        names = ", ".join(sorted(name for name, other in settings.syncs.items() if other.is_for(tenant))) or "none"
        raise Permanent(f"no sync {job.sync!r} in penstock.toml; there is: {names}")
    if not sync.is_for(tenant):
        if tenant is None:
            raise Permanent(
                f"sync {job.sync!r} is for jobs with a tenant, as it has {{tenant}}; enqueue it with tenant="
            )
        raise Permanent(
            f"sync {job.sync!r} is not for tenant {tenant!r}; add the tenant to `tenants` of [syncs.{job.sync}], or "
            "write {tenant} in its source and its table"
        )
    if tenant is None or not sync.has_tenant:
        return job.sync, sync
    name = f"{job.sync}:{tenant}"
    if len(name) > MAX_ID:
        name = hashlib.sha256(name.encode()).hexdigest()
    try:
        return name, sync.filled(tenant)
    except ValueError as error:
        raise Permanent(f"sync {job.sync!r}: {error}; declare a sync of its own for this tenant") from error


async def _run(
    job: RunSync, ctx: Context, sync: SyncSettings, table: SyncTable, pages: Pages, position: SyncPosition
) -> SyncFinished | Retry | Snooze:
    counts = {"pages": 0, "fetched": 0, "inserted": 0, "updated": 0, "skipped": 0}
    resumed = position.page is not None
    visited: set[str | None] = {position.page}
    while True:
        ctx.check_cancelled()
        try:
            with _settings_errors(job.sync):
                page = await pages.fetch(position, resumed=resumed)
        except StaleCursor:
            ctx.log.warning("sync %s: the saved cursor is refused, beginning with the first page", job.sync)
            position, resumed, visited = position.restarted(position.job), False, set()
            continue
        if not isinstance(page, Page):
            return page
        if page.next is not None and page.next in visited:
            raise Permanent(f"sync {job.sync!r}: the server names a page twice; is `cursor_param` right?")
        visited.add(page.next)
        batch = await asyncio.to_thread(read_records, job.sync, sync, page.records)
        try:
            saved = await asyncio.to_thread(table.save, batch.rows, position, _after(position, page, batch, sync))
        except PositionConflict:
            return Retry(reason=f"sync {job.sync!r}: another run of it is under way")
        position, resumed = saved.position, False
        counts["pages"] += 1
        counts["fetched"] += len(page.records)
        counts["inserted"] += saved.inserted
        counts["updated"] += saved.updated
        counts["skipped"] += batch.skipped
        ctx.progress(counts["fetched"], None, f"{counts['pages']} pages")
        if page.next is None:
            return SyncFinished(sync=job.sync, cursor=position.since or position.page, **counts)


def _after(position: SyncPosition, page: Page, batch: Batch, sync: SyncSettings) -> SyncPosition:
    """The position once a page is saved."""
    seen = later(position.seen, batch.seen)
    if page.next is not None:
        return replace(position, page=page.next, seen=seen)
    if sync.updated is not None:
        return SyncPosition(since=later(position.since, seen))
    # Without a time of change, the last page is where new records will turn up.
    return SyncPosition(page=position.page)


@dataclass(frozen=True, slots=True)
class Batch:
    """The rows of a page, with distinct ids; the greatest change among them; and how many records were left out."""

    rows: list[dict[str, Any]]
    seen: str | None
    skipped: int


def read_records(name: str, sync: SyncSettings, records: list[Any]) -> Batch:
    """Make rows of records as the settings map them. Of two with one id the later counts.

    Raises:
        Permanent: one does not fit, unless `on_bad_record` is `skip`; names its id and the column.
    """
    rows: dict[Any, dict[str, Any]] = {}
    seen: str | None = None
    skipped = 0
    for number, record in enumerate(records, start=1):
        try:
            row = _row(sync, record)
            change = _change(sync, record)
        except ValueError as error:
            if sync.on_bad_record == "fail":
                which = find(record, sync.id)
                label = f"id {which!r}" if isinstance(which, str | int) else f"number {number} of the page"
                raise Permanent(f"sync {name!r}: record {label}: {error}") from error
            skipped += 1
            continue
        skipped += row["id"] in rows
        rows[row["id"]] = row
        seen = later(seen, change)
    return Batch(list(rows.values()), seen, skipped)


def later(first: str | None, second: str | None) -> str | None:
    """The greater of two changes: as numbers or times where both are, else as text."""
    if first is None or second is None:
        return first if second is None else second
    for measure in (float, _instant):
        try:
            return first if measure(first) >= measure(second) else second
        except ValueError:
            continue
    return max(first, second)


def _row(sync: SyncSettings, record: Any) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise ValueError("expected a JSON object")
    row: dict[str, Any] = {"id": _id(sync, record)}
    if not sync.columns:
        return {**row, "updated_at": _change(sync, record), "record": _document(record)}
    for name, column in sync.columns.items():
        if name == "id":
            continue
        value = find(record, column.path if column.path is not None else name)
        try:
            row[name] = None if value is None else _value(value, column.type)
        except ValueError as error:
            raise ValueError(f"column {name!r}: {error}") from error
    return row


def _id(sync: SyncSettings, record: dict[str, Any]) -> str | int:
    value = find(record, sync.id)
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise ValueError(f"no text or whole number at id = {sync.id!r}")
    if "id" in sync.columns and sync.columns["id"].type == "int":
        return int(read_value(value, "int"))
    text = _text(str(value))
    if len(text) > MAX_ID:
        raise ValueError(f"its id has more than {MAX_ID} letters")
    return text


def _change(sync: SyncSettings, record: dict[str, Any]) -> str | None:
    value = find(record, sync.updated) if sync.updated else None
    if isinstance(value, bool) or not isinstance(value, str | int | float | None):
        raise ValueError(f"no text or number at updated = {sync.updated!r}")
    return None if value in (None, "") else _text(str(value))


def _value(value: Any, type: Any) -> Any:
    if type == "json":
        return _document(value)
    typed = read_value(value, type)
    if isinstance(typed, str):
        return _text(typed)
    if isinstance(typed, datetime):
        # MySQL and SQLite keep no zone: all is UTC there.
        return (typed.replace(tzinfo=UTC) if typed.tzinfo is None else typed).astimezone(UTC)
    return typed


def _document(value: Any) -> Any:
    """JSON that every database takes: MariaDB refuses half of a surrogate pair, even spelled out."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError("it is not valid Unicode") from error
    return value


def _text(value: str) -> str:
    """Text that every database holds: no NUL, no half of a surrogate pair."""
    if "\x00" in value:
        raise ValueError("it holds a NUL character")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError("it is not valid Unicode") from error
    return value


def _instant(text: str) -> float:
    time = datetime.fromisoformat(text)
    return (time.replace(tzinfo=UTC) if time.tzinfo is None else time).timestamp()


@contextmanager
def _settings_errors(name: str) -> Iterator[None]:
    """Translate httpx errors about wrong settings, raised before anything is sent, into Permanent."""
    import httpx

    try:
        yield
    except (httpx.InvalidURL, httpx.UnsupportedProtocol, UnicodeEncodeError) as error:
        raise Permanent(f"sync {name!r}: {error}") from error
