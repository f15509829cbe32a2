"""`report.build`: stream a query's rows into a file in the storage."""

from __future__ import annotations

import hashlib
import io
import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from penstock.config.errors import ObjectNotFound
from penstock.config.sections.builtin.reports import ReportSettings
from penstock.config.settings import Settings
from penstock.schemas.builtin.reports import BuildReport, ReportBuilt
from penstock.schemas.wire.ids import made_at
from penstock.workers.builtin.databases import Databases
from penstock.workers.builtin.emails.addresses import safe_name
from penstock.workers.builtin.reports.definitions import find_report, missing_report, read_parameters
from penstock.workers.builtin.reports.files import media_type_of, open_file, suffix_of
from penstock.workers.builtin.reports.mail import check_delivery, mail_report
from penstock.workers.builtin.reports.query import Snapshot, open_snapshot
from penstock.workers.builtin.reports.text_files import plain_text
from penstock.workers.builtin.scratch import scratch_folder
from penstock.workers.handlers.context import Context
from penstock.workers.handlers.registry import handles
from penstock.workers.handlers.returns import Discard, Permanent
from penstock.workers.handlers.storage import Storage, storage_of

PROGRESS_EVERY = 5000
"""Rows between two reports of progress."""


@handles(BuildReport, missing=missing_report)
def build_report(
    job: BuildReport, ctx: Context, databases: Databases, storage: Storage, settings: Settings
) -> ReportBuilt | Discard:
    """Run the query and store its rows under `reports/NAME/<hash of parameters>/NAME-<job id>.csv`, or another suffix.

    For a job with a tenant both are below the tenant's folder, and `:tenant` in the query is the tenant.

    A `.json` file with the result is written last, next to the report: a second run of the same job finds it, and
    neither queries the database again nor writes anything.

    Raises:
        Permanent: no such report, not one for its tenant, wrong parameters, too many rows, or sql that the database
            does not take.
        StorageError, DatabaseUnavailable: tried again for days. TimeoutError: tried again a few times.
        JobCancelled: the query is cancelled in the database.
    """
    report = find_report(job, ctx.tenant, settings)
    storage = storage_of(ctx.tenant, storage, settings)
    created_at = made_at(ctx.job_id) or ctx.enqueued_at
    parameters = read_parameters(job, report, created_at)
    if report.binds_tenant:
        parameters["tenant"] = ctx.tenant
    check_delivery(job, storage)
    key = storage.root + _key(job, ctx, parameters)
    result = _built_before(storage, key)
    if result is None:
        engine = databases.engine(report.database_url or settings.database_url)
        with scratch_folder("penstock-report") as folder:
            path = folder / f"report.{suffix_of(job)}"
            with open_snapshot(engine, ctx, report, job.report) as snapshot:
                rows, sheets, cut_cells = _write(job, ctx, report, parameters, snapshot, path, created_at)
            if job.only_if_rows and not rows:
                return Discard(f"report {job.report!r} has no rows")
            result = ReportBuilt(
                report=job.report,
                key=key,
                format=job.format,
                rows=rows,
                sheets=sheets,
                size=path.stat().st_size,
                parameters=_as_json(parameters),
                cut_cells=cut_cells,
            )
            ctx.progress(rows, rows, "storing")
            with path.open("rb") as file:
                storage.write(key, file, media_type_of(job))
        storage.write(f"{key}.json", io.BytesIO(result.model_dump_json().encode()), "application/json")
    if job.email_to:
        mail_report(job, ctx, report, result, storage, settings)
    return result


def _write(
    job: BuildReport,
    ctx: Context,
    report: ReportSettings,
    parameters: dict[str, Any],
    snapshot: Snapshot,
    path: Path,
    created_at: datetime,
) -> tuple[int, int, int]:
    """Stream the rows into a file. Returns the numbers of rows, of sheets and of cells that were cut."""
    total = snapshot.count(report.sql, parameters) if report.count else None
    ctx.progress(0, total, "reading")
    _check_rows(job, report, total or 0)
    done = 0
    with (
        snapshot.rows(report.sql, parameters) as (heading, batches),
        open_file(job, report, path, heading, created_at) as file,
    ):
        for batch in batches:
            for row in batch:
                file.write(row)
            done += len(batch)
            _check_rows(job, report, done)
            if done % PROGRESS_EVERY == 0:
                ctx.progress(done, total, "reading")
    if file.cut_cells:
        ctx.log.warning("report %s: %d cells are cut: a sheet holds less; use format csv", job.report, file.cut_cells)
    return done, file.sheets, file.cut_cells


def _check_rows(job: BuildReport, report: ReportSettings, rows: int) -> None:
    if report.max_rows is not None and rows > report.max_rows:
        raise Permanent(
            f"report {job.report!r}: its query has more rows than max_rows ({report.max_rows}); let it read less, or "
            f"raise max_rows of [reports.{job.report}]"
        )


def _key(job: BuildReport, ctx: Context, parameters: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(_as_json(parameters), sort_keys=True).encode()).hexdigest()[:16]
    name = re.sub(r"[^A-Za-z0-9_-]", "_", job.report)[:100]
    return f"reports/{name}/{digest}/{name}-{safe_name(ctx.job_id)[:80]}.{suffix_of(job)}"


def _built_before(storage: Storage, key: str) -> ReportBuilt | None:
    try:
        with storage.read(f"{key}.json") as stream:
            result = ReportBuilt.model_validate_json(stream.read())
    except (ObjectNotFound, ValidationError):
        return None
    stored = storage.find(key)
    return result if stored is not None and stored.size == result.size else None


def _as_json(parameters: dict[str, Any]) -> dict[str, Any]:
    kept = (bool, int, float, str)
    return {name: value if isinstance(value, kept) else plain_text(value) for name, value in parameters.items()}
