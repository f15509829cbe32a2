"""Settings of the four built-in workers: `[uploads]`, `[emails]`, `[reports.NAME]`, `[syncs.NAME]`."""

from __future__ import annotations

import re
from email.utils import parseaddr
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from penstock.config.sections.tenants import EVERY, TENANT, Names, Tenants, check_folder, fill, is_for
from penstock.config.sections.values import HttpUrl, TimeZone, ValueType, read_value

MEGABYTE = 1024 * 1024
_LONGEST_NAME = 63
"""Letters of the name of a table or schema: PostgreSQL cuts longer ones."""
_IDENTIFIER = r"^[A-Za-z_][A-Za-z0-9_]{0,62}$"
# The expression by which SQLAlchemy's text() finds bind parameters.
_BIND = re.compile(r"(?<![:\w\\]):(\w+)(?!:)")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class UploadsSettings(_Section):
    """`[uploads]`: the policy every upload is checked against, and what is made of images."""

    max_bytes: int = Field(default=100 * MEGABYTE, ge=1)
    media_types: tuple[str, ...] = (
        "image/jpeg",
        "image/png",
        "image/webp",
        "image/gif",
        "application/pdf",
        "text/plain",
    )
    """Accepted media types, detected from the content. `image/*` is every image; `text/plain` includes `text/csv`."""
    max_pixels: int = Field(default=40_000_000, ge=1, le=89_478_485)
    """Width × height × frames of an image. One being worked on takes up to 12 bytes for each (WebP: 24); a worker
    process works on as many at a time as there are cores. The bound is Pillow's own limit."""
    thumbnails: tuple[int, ...] = (256, 1024)
    """The longest sides, in pixels. An image is never enlarged."""
    keep_original: bool = True
    """Keep images as they came, with their metadata (which may hold where they were taken), next to the clean copy."""
    prefix: str = "uploads"
    """Folder of the results in the storage; for a job with a tenant, below the tenant's folder."""

    @field_validator("prefix")
    @classmethod
    def _folder(cls, value: str) -> str:
        if TENANT in value:
            raise ValueError(f"leave {TENANT} out: results of tenants are below tenant_storage_prefix by themselves")
        return check_folder(value)

    @field_validator("media_types")
    @classmethod
    def _types(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if not re.fullmatch(r"[a-z]+/([a-z0-9.+-]+|\*)", name):
                raise ValueError(f"{name!r} is not a media type; write it as image/png or image/*")
        return value

    @field_validator("thumbnails")
    @classmethod
    def _sizes(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if bad := [size for size in value if not 1 <= size <= 8192]:
            raise ValueError(f"a thumbnail's side must lie between 1 and 8192 pixels, not {bad[0]}")
        return tuple(sorted(set(value)))


class EmailsSettings(_Section):
    """`[emails]`: the sender, the templates and the limits."""

    model_config = ConfigDict(populate_by_name=True)

    sender: str = Field(default="Penstock <penstock@localhost>", alias="from")
    """`from = "Shop <shop@example.com>"`; a job without a tenant may name another."""
    senders: dict[str, Names] = Field(default_factory=dict)
    """Tenant → addresses that its mails may come from, the first if the job names none; those of `*` are for tenants
    that are not listed. `{tenant}` is the tenant's name. Without an entry: `from` alone."""
    templates: str | None = None
    """A folder looked into before the shipped templates."""
    connections: int = Field(default=4, ge=1, le=1000)
    """Connections to the mail server that one worker process holds at most."""
    max_attachment_bytes: int = Field(default=20 * MEGABYTE, ge=0)
    """Limit for all attachments of one mail together."""

    @field_validator("sender")
    @classmethod
    def _sender(cls, value: str) -> str:
        return _address(value)

    @field_validator("senders")
    @classmethod
    def _senders(cls, value: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        for tenant, addresses in value.items():
            if not addresses:
                raise ValueError(f"name an address for {tenant!r}, or remove the entry: then it sends as `from`")
            for address in addresses:
                _address(address.replace(TENANT, "tenant"))
        return value

    def senders_of(self, tenant: str) -> tuple[str, ...]:
        """The addresses that a tenant's mails may come from, its default first.

        Raises:
            ValueError: its name does not fit into an address that has `{tenant}`.
        """
        addresses = self.senders.get(tenant) or self.senders.get(EVERY) or (self.sender,)
        return tuple(fill(address, tenant) for address in addresses)


class ParameterSettings(_Section):
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


class ReportSettings(_Section):
    """`[reports.NAME]`: a named query that `report.build` can run. Its transaction is rolled back, never committed."""

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
    csv_bom: bool = False
    """Begin CSV with a byte order mark, by which Excel knows UTF-8."""
    link_expires_seconds: int = Field(default=7 * 24 * 3600, ge=1, le=7 * 24 * 3600)
    """Lifetime of the link in the mail (S3)."""

    @field_validator("parameters", mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return _expanded(value)

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


class ColumnSettings(_Section):
    """`total = { type = "decimal", path = "amount.total" }`, or `total = "decimal"` where path and name are alike."""

    type: Literal["str", "int", "float", "decimal", "date", "datetime", "bool", "json"]
    path: str | None = None
    """Path of the value in a record; None: the column's name."""


class SyncSettings(_Section):
    """`[syncs.NAME]`: an HTTP API that answers pages of JSON records, and the table they go into.

    Paths are dotted keys, such as `meta.next`; an empty path is the whole document. With `{tenant}` in `table`, and in
    `url`, `headers` or `params`, each tenant has a source and a table of its own.
    """

    tenants: Tenants | None = None
    """Tenants whose jobs may run it. None: every tenant if it has `{tenant}`, else none. A job without a tenant runs
    every sync that has no `{tenant}`."""

    url: HttpUrl
    headers: dict[str, str] = Field(default_factory=dict)
    """`${NAME}` in a value is replaced by that environment variable, in each run."""
    params: dict[str, str | int | float | bool] = Field(default_factory=dict)
    """Sent with every request, such as `limit = 100`; `${NAME}` as in headers."""
    items: str = "items"
    """Path of the list of records."""
    next_cursor: str = "next_cursor"
    """Path of the next page's cursor, or of its URL on the same host; null, absent or empty on the last page."""
    cursor_param: str = "cursor"
    id: str = "id"
    """Path of a record's id, which goes into the primary key column `id`."""
    updated: str | None = None
    """Path of a record's time (or number) of change; the next run sends the greatest one as `updated_param`."""
    updated_param: str | None = None
    table: str
    """`orders` or `schema.orders`; made if it is not there. `{tenant}` comes last: `orders_{tenant}`."""
    columns: dict[str, ColumnSettings] = Field(default_factory=dict)
    """Empty: a JSON column `record` with the whole record, and `updated_at` as the API spells it."""
    database_url: str | None = None
    """None: the ledger's."""
    on_bad_record: Literal["fail", "skip"] = "fail"
    """A record without an id or with a value of another type: stop before its page, or leave it out and count it."""
    timeout_seconds: float = Field(default=30.0, gt=0)
    """For each request to connect, and between two pieces of its answer."""
    max_page_bytes: int = Field(default=32 * MEGABYTE, ge=1024)

    @field_validator("columns", mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return _expanded(value)

    @field_validator("table")
    @classmethod
    def _table(cls, value: str) -> str:
        if value.count(TENANT) > 1 or (TENANT in value and not re.search(r"[A-Za-z0-9]_\{tenant\}(\.|$)", value)):
            raise ValueError(
                f"write {TENANT} once, after a name and '_', so that it cannot become another table's name"
            )
        names = value.replace(TENANT, "").split(".")
        if len(names) > 2 or not all(re.fullmatch(_IDENTIFIER, name) for name in names):
            raise ValueError("a table is letters, digits and '_', at most 63, with or without a schema before it")
        if names[-1].lower().startswith("penstock_") or names[-1].lower() == "alembic_version":
            raise ValueError(f"{value!r} could be a table of Penstock's own; choose another name")
        return value

    @model_validator(mode="after")
    def _fits(self) -> SyncSettings:
        for name in self.columns:
            if not re.fullmatch(_IDENTIFIER, name):
                raise ValueError(f"column {name!r} must be letters, digits and '_', at most 63")
        if (self.updated is None) != (self.updated_param is None):
            raise ValueError("updated and updated_param belong together: give both or neither")
        key = self.columns.get("id")
        if key is not None and (key.type not in ("str", "int") or key.path is not None):
            raise ValueError("column 'id' takes type str or int and no path; the setting `id` is its path")
        in_source = TENANT in " ".join([self.url, *self.headers.values(), *map(str, self.params.values())])
        if in_source and not self.has_tenant:
            raise ValueError(
                f"{TENANT} is in its source, but not in table: tenants would overwrite each other's records; write "
                f'table = "{self.table}_{TENANT}"'
            )
        if self.has_tenant and not in_source:
            raise ValueError(
                f"{TENANT} is in table, but all get the same records; write it in url, headers or params too"
            )
        return self

    @property
    def has_tenant(self) -> bool:
        """Whether each tenant has a source and a table of its own."""
        return TENANT in self.table

    def is_for(self, tenant: str | None) -> bool:
        """Whether a job of this tenant may run it; None: a job without one."""
        return is_for(self.tenants, tenant, by_tenant=self.has_tenant)

    def filled(self, tenant: str) -> SyncSettings:
        """The settings with `{tenant}` replaced.

        Raises:
            ValueError: the tenant's name does not fit, or makes the name of the table too long.
        """
        table = fill(self.table, tenant)
        if any(len(name) > _LONGEST_NAME for name in table.split(".")):
            raise ValueError(f"table {table!r} has a name of more than {_LONGEST_NAME} letters")
        return self.model_copy(
            update={
                "url": fill(self.url, tenant),
                "table": table,
                "headers": {name: fill(value, tenant) for name, value in self.headers.items()},
                "params": {
                    name: fill(value, tenant) if isinstance(value, str) else value
                    for name, value in self.params.items()
                },
            }
        )


def _expanded(value: Any) -> Any:
    """The short form `name = "type"` as the long one."""
    if not isinstance(value, dict):
        return value
    return {name: {"type": entry} if isinstance(entry, str) else entry for name, entry in value.items()}


def _address(value: str) -> str:
    """The address, with or without a name. Raises ValueError."""
    from email.headerregistry import Address  # late: it takes half a megabyte

    name, address = parseaddr(value)
    try:
        if not value.isprintable():
            raise ValueError("it holds a line break or another control character")
        parsed = Address(name, addr_spec=address)
    except Exception as error:  # the parser has several of its own
        raise ValueError(f"not an address; write it as name@host or Name <name@host>: {error}") from error
    if not parsed.username or not parsed.domain:
        raise ValueError("not an address; write it as name@host or Name <name@host>")
    return value
