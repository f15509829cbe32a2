"""The report that a job names, and the values of its parameters."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from penstock.config.sections.builtin.reports import ReportSettings
from penstock.config.sections.values import read_value
from penstock.config.settings import Settings
from penstock.schemas.builtin.reports import BuildReport
from penstock.workers.builtin.missing import lack_of
from penstock.workers.handlers.returns import Permanent


def missing_report(job: BuildReport, settings: Settings, tenant: str | None = None) -> str | None:
    """The lack of a worker whose settings do not have the job's report; None if they have."""
    return lack_of("report", job.report, settings.reports, tenant)


def find_report(job: BuildReport, tenant: str | None, settings: Settings) -> ReportSettings:
    """The settings of the job's report.

    Raises:
        Permanent: they are missing, or it is not a report for this tenant.
    """
    report = settings.reports.get(job.report)
    if report is None:
        raise Permanent(missing_report(job, settings, tenant))
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
