"""`report.build`: stream a query's rows into a file in the storage."""

from __future__ import annotations

import hashlib
import io
import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from pydantic import ValidationError
from sqlalchemy import (
    BigInteger,
    BindParameter,
    Boolean,
    ColumnElement,
    Connection,
    CursorResult,
    Date,
    DateTime,
    Double,
    Numeric,
    Text,
    bindparam,
    collate,
    text,
)
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.types import TypeEngine

from penstock.config.errors import ObjectNotFound
from penstock.config.sections.builtin.reports import ReportSettings
from penstock.config.sections.values import read_value
from penstock.config.settings import Settings
from penstock.ledger.sql.faults import Fault, fault_of
from penstock.schemas.builtin.emails import SendEmail
from penstock.schemas.builtin.reports import BuildReport, ReportBuilt
from penstock.schemas.wire.ids import made_at
from penstock.workers.builtin.databases import Databases
from penstock.workers.builtin.emails.transport import safe_name
from penstock.workers.builtin.reports.spreadsheets import MEDIA_TYPES, Sheet, open_csv, open_xlsx, plain_text
from penstock.workers.handlers.context import Context
from penstock.workers.handlers.registry import handles
from penstock.workers.handlers.returns import Permanent
from penstock.workers.handlers.storage import Storage, storage_of

BATCH = 1000
"""Rows fetched at a time."""
PROGRESS_EVERY = 5000
"""Rows between two reports of progress."""
_TYPES: dict[str, type[TypeEngine[Any]]] = {
    "str": Text,
    "int": BigInteger,
    "float": Double,
    "decimal": Numeric,
    "date": Date,
    "datetime": DateTime,
    "bool": Boolean,
}


class _Tenant(Text):
    """The tenant as MySQL and MariaDB must compare it: exactly. To their defaults `acme` and `ACME ` are equal."""

    def bind_expression(self, bindvalue: BindParameter[str]) -> ColumnElement[str]:
        assert self.collation is not None
        return collate(bindvalue, self.collation)


@handles(BuildReport)
def build_report(
    job: BuildReport, ctx: Context, databases: Databases, storage: Storage, settings: Settings
) -> ReportBuilt:
    """Run the query and store its rows under `reports/NAME/<hash of parameters>/NAME-<job id>.csv` (or `.xlsx`).

    For a job with a tenant both are below the tenant's folder, and `:tenant` in the query is the tenant.

    A `.json` file with the result is written last, next to the report: a second run of the same job finds it, and
    neither queries the database again nor writes anything.

    Raises:
        Permanent: no such report, not one for its tenant, wrong parameters, or SQL that the database does not take.
        StorageError, SQLAlchemyError: worth another try.
    """
    report = _find_report(job, ctx.tenant, settings)
    storage = storage_of(ctx.tenant, storage, settings)
    created_at = made_at(ctx.job_id) or ctx.enqueued_at
    parameters = read_parameters(job, report, created_at)
    if report.binds_tenant:
        parameters["tenant"] = ctx.tenant
    key = storage.root + _key(job, ctx, parameters)
    result = _built_before(storage, key)
    if result is None:
        engine = databases.engine(report.database_url or settings.database_url)
        with tempfile.TemporaryDirectory(prefix="penstock-report-") as folder, engine.connect() as connection:
            path = Path(folder) / f"report.{job.format}"
            rows, sheets = _write(job, ctx, report, parameters, connection, path, created_at)
            result = ReportBuilt(
                report=job.report,
                key=key,
                format=job.format,
                rows=rows,
                sheets=sheets,
                size=path.stat().st_size,
                parameters=_as_json(parameters),
            )
            with path.open("rb") as file:
                storage.write(key, file, MEDIA_TYPES[job.format])
        storage.write(f"{key}.json", io.BytesIO(result.model_dump_json().encode()), "application/json")
    if job.email_to:
        _mail(job, ctx, report, result, storage)
    return result


def _find_report(job: BuildReport, tenant: str | None, settings: Settings) -> ReportSettings:
    report = settings.reports.get(job.report)
    if report is None:
        names = ", ".join(sorted(name for name, other in settings.reports.items() if other.is_for(tenant))) or "none"
        raise Permanent(f"no report {job.report!r} in penstock.toml; there is: {names}")
    if "tenant" in job.parameters:
        raise Permanent(f"report {job.report!r}: 'tenant' is not a parameter; enqueue the job with tenant=")
    if report.is_for(tenant):
        return report
    if tenant is None:
        raise Permanent(
            f"report {job.report!r} is for jobs with a tenant: its sql has :tenant; enqueue it with tenant="
        )
    raise Permanent(
        f"report {job.report!r} is not for tenant {tenant!r}; use :tenant in its sql, or add the tenant to `tenants` "
        f"of [reports.{job.report}]"
    )


def read_parameters(job: BuildReport, report: ReportSettings, created_at: datetime) -> dict[str, Any]:
    """The job's parameters, typed, with defaults filled in.

    Arguments:
        created_at: when the job was made; `today` and `yesterday` are seen from then, so that a retry past midnight
            builds the same report.

    Raises:
        Permanent: one is unknown, missing or of the wrong type; names it and the type.
    """
    if unknown := sorted(set(job.parameters) - set(report.parameters)):
        names = ", ".join(report.parameters) or "none"
        raise Permanent(f"report {job.report!r} has no parameter {unknown[0]!r}; there is: {names}")
    values: dict[str, Any] = {}
    today = created_at.astimezone(ZoneInfo(report.timezone)).date()
    for name, declared in report.parameters.items():
        value = job.parameters.get(name)
        try:
            if value is None and declared.relative:
                values[name] = today - timedelta(days=declared.default == "yesterday")
            else:
                values[name] = read_value(declared.default if value is None else value, declared.type)
        except ValueError as error:
            raise Permanent(f"report {job.report!r}, parameter {name!r}: {error}") from error
    return values


def _write(
    job: BuildReport,
    ctx: Context,
    report: ReportSettings,
    parameters: dict[str, Any],
    connection: Connection,
    path: Path,
    created_at: datetime,
) -> tuple[int, int]:
    """Stream the rows into a file. Returns the numbers of rows and sheets."""
    binds = [bindparam(name, type_=_TYPES[declared.type]()) for name, declared in report.parameters.items()]
    if report.binds_tenant:
        binds.append(bindparam("tenant", type_=_tenant_type(connection.dialect)))
    sql = report.sql.strip().rstrip(";")
    total = _count(connection, sql, binds, parameters) if report.count else None
    ctx.progress(0, total, "reading")
    columns = {name: _TYPES[kind]() for name, kind in report.columns.items()}
    query = text(sql).bindparams(*binds)
    with _streamed(connection, query.columns(**columns) if columns else query, parameters) as rows:
        heading = _heading(job, rows)
        with _sheet(job, report, path, heading, created_at) as sheet:
            done = 0
            for batch in rows.partitions(BATCH):
                ctx.check_cancelled()
                for row in batch:
                    sheet.write(row)
                done += len(batch)
                if done % PROGRESS_EVERY == 0:
                    ctx.progress(done, total, "reading")
            ctx.progress(done, done, "storing")
    return done, sheet.sheets


def _tenant_type(dialect: Any) -> Text:
    if dialect.name not in ("mysql", "mariadb"):
        return Text()
    return _Tenant(collation="utf8mb4_nopad_bin" if dialect.is_mariadb else "utf8mb4_0900_bin")


@contextmanager
def _streamed(connection: Connection, query: Any, parameters: dict[str, Any]) -> Iterator[CursorResult[Any]]:
    """Run a query with a cursor that stays at the server, where the driver has one."""
    try:
        with connection.execution_options(stream_results=True, max_row_buffer=BATCH).execute(query, parameters) as rows:
            yield rows
    except BaseException as error:
        # A cursor closed halfway would first read all that is left (PyMySQL does); the connection is dropped instead.
        connection.invalidate()
        if isinstance(error, DBAPIError) and fault_of(error) in (Fault.SCHEMA, Fault.OTHER):
            raise Permanent(f"the database does not take the report's sql: {error.orig}") from error
        raise


def _count(connection: Connection, sql: str, binds: Sequence[Any], parameters: dict[str, Any]) -> int | None:
    """Count the rows; None if the query cannot be a subquery, such as with two columns of the same name."""
    try:
        query = text(f"SELECT COUNT(*) FROM ({sql}\n) AS counted").bindparams(*binds)  # noqa: S608  # the operator's
        return int(connection.execute(query, parameters).scalar_one())
    except SQLAlchemyError:
        connection.rollback()
        return None


def _heading(job: BuildReport, rows: CursorResult[Any]) -> list[str]:
    if not rows.returns_rows:
        raise Permanent(f"report {job.report!r}: its sql returns no rows; write a SELECT")
    return [str(name) for name in rows.keys()]  # noqa: SIM118  # no mapping


def _sheet(
    job: BuildReport, report: ReportSettings, path: Path, heading: list[str], created_at: datetime
) -> AbstractContextManager[Sheet]:
    if job.format == "csv":
        return open_csv(path, heading, bom=report.csv_bom)
    title = report.title or job.report
    return open_xlsx(path, heading, title=title, created=created_at, zone=ZoneInfo(report.timezone))


def _key(job: BuildReport, ctx: Context, parameters: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(_as_json(parameters), sort_keys=True).encode()).hexdigest()[:16]
    name = re.sub(r"[^A-Za-z0-9_-]", "_", job.report)[:100]
    return f"reports/{name}/{digest}/{name}-{safe_name(ctx.job_id)[:80]}.{job.format}"


def _built_before(storage: Storage, key: str) -> ReportBuilt | None:
    try:
        with storage.read(f"{key}.json") as stream:
            result = ReportBuilt.model_validate_json(stream.read())
    except (ObjectNotFound, ValidationError):
        return None
    stored = storage.find(key)
    return result if stored is not None and stored.size == result.size else None


def _mail(job: BuildReport, ctx: Context, report: ReportSettings, result: ReportBuilt, storage: Storage) -> None:
    lifetime = timedelta(seconds=report.link_expires_seconds)
    link = storage.link(result.key, lifetime)
    until = None if link.startswith("file:") else f"{datetime.now(UTC) + lifetime:%Y-%m-%d %H:%M} UTC"
    mail = SendEmail(
        to=job.email_to or (),
        template="report_ready",
        variables={
            "title": report.title or job.report,
            "report": job.report,
            "format": result.format,
            "rows": result.rows,
            "link": link,
            "expires": until,
        },
    )
    ctx.enqueue(mail, key=f"{ctx.job_id}:report-ready")


def _as_json(parameters: dict[str, Any]) -> dict[str, Any]:
    kept = (bool, int, float, str)
    return {name: value if isinstance(value, kept) else plain_text(value) for name, value in parameters.items()}
