"""`[reports.NAME]`."""

from __future__ import annotations

import re
from typing import Any

from pydantic import Field, field_validator, model_validator

from penstock.config.sections.builtin.section import Section, expanded
from penstock.config.sections.tenants import Tenants, is_for
from penstock.config.sections.values import TimeZone, ValueType, read_value

# The expression by which SQLAlchemy's text() finds bind parameters.
_BIND = re.compile(r"(?<![:\w\\]):(\w+)(?!:)")


class ParameterSettings(Section):
    """`day = { type = "date", default = "yesterday" }`, or `day = "date"` for one that must be given."""

    type: ValueType
    default: Any = None
    """Used where a job gives none. For a date also `today` and `yesterday`, seen from when the job was enqueued."""

    @model_validator(mode="after")
    def _default_fits(self) -> ParameterSettings:
        if self.default is not None and not self.relative:
            read_value(self.default, self.type)
        return self

    @property
    def relative(self) -> bool:
        return self.type == "date" and self.default in ("today", "yesterday")


class ReportSettings(Section):
    """`[reports.NAME]`: a named query that `report.build` can run. It runs in a read-only snapshot."""

    sql: str
    """A SELECT with named parameters, such as `:day`. `:tenant` is the tenant of the job, whatever the job says."""
    tenants: Tenants | None = None
    """Tenants whose jobs may run it. None: every tenant if its sql has `:tenant`, else none. A job without a tenant
    runs every report that has no `:tenant`."""
    parameters: dict[str, ParameterSettings] = Field(default_factory=dict)
    columns: dict[str, ValueType] = Field(default_factory=dict)
    """Types of result columns, for a database that keeps none of its own (SQLite: dates, decimals, bools)."""
    database_url: str | None = None
    """None: the ledger's."""
    title: str | None = None
    """The name of the sheet, and in the mail; None: the report's name."""
    timezone: TimeZone = "UTC"
    """For `today` and `yesterday`, and for times in a sheet, which can hold no zone."""
    count: bool = True
    """Count the rows first, for the progress; costs a second run of the query."""
    query_timeout_seconds: float | None = Field(default=None, gt=0)
    """Longest time for the count, the query and reading its rows; then it is cancelled in the database. None: as long
    as the job may run."""
    max_rows: int | None = Field(default=None, ge=1)
    """More rows are a dead letter, not a cut report. None: any number."""
    csv_formulas: bool = False
    """Keep text in CSV that a spreadsheet would run as a formula, such as `+49 30 123` or `=1+1`; False: put an
    apostrophe before it. True only for programs that read it, or where no stranger writes the data."""
    csv_bom: bool = False
    """Begin CSV with a byte order mark, by which Excel knows UTF-8."""
    link_expires_seconds: int = Field(default=7 * 24 * 3600, ge=1, le=7 * 24 * 3600)
    """Lifetime of the link in the mail (S3)."""

    @field_validator("parameters", mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return expanded(value)

    @model_validator(mode="after")
    def _parameters_match(self) -> ReportSettings:
        used = set(_BIND.findall(self.sql)) - {"tenant"}
        if "tenant" in self.parameters:
            raise ValueError(
                "parameter 'tenant' is the job's tenant; remove it from parameters, and keep :tenant in sql"
            )
        if missing := sorted(used - set(self.parameters)):
            raise ValueError(f"sql uses :{missing[0]}, which parameters does not declare")
        if unused := sorted(set(self.parameters) - used):
            raise ValueError(f"parameter {unused[0]!r} is declared, but sql does not use :{unused[0]}")
        return self

    @property
    def binds_tenant(self) -> bool:
        """Whether its sql has `:tenant`."""
        return "tenant" in _BIND.findall(self.sql)

    def is_for(self, tenant: str | None) -> bool:
        """Whether a job of this tenant may run it; None: a job without one."""
        return is_for(self.tenants, tenant, by_tenant=self.binds_tenant)
