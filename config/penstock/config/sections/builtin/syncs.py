"""`[syncs.NAME]`."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from penstock.config.sections.builtin.section import MEGABYTE, Section, expanded
from penstock.config.sections.builtin.sync_pages import PagesSettings
from penstock.config.sections.schedules import Duration
from penstock.config.sections.tenants import TENANT, Tenants, fill, is_for
from penstock.config.sections.values import HttpUrl

_LONGEST_NAME = 63
"""Letters of the name of a table or schema: PostgreSQL cuts longer ones."""
_IDENTIFIER = r"^[A-Za-z_][A-Za-z0-9_]{0,62}$"


class ColumnSettings(Section):
    """`total = { type = "decimal", path = "amount.total" }`, or `total = "decimal"` where path and name are alike."""

    type: Literal["str", "int", "float", "decimal", "date", "datetime", "bool", "json"]
    path: str | None = None
    """Path of the value in a record; None: the column's name."""
    absent: Literal["keep", "null"] = "keep"
    """A record without the field: keep the row's value, as the field may have been renamed, or write NULL, for an API
    that leaves out fields that are null. A field that is null is NULL."""


class SyncSettings(Section):
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
    method: Literal["GET", "POST"] = "GET"
    """With POST, the cursor, `updated_param` and the other parameters of a page are paths into `body`."""
    body: dict[str, Any] = Field(default_factory=dict)
    """JSON that is sent with POST, such as a GraphQL query and its variables; `${NAME}` as in headers."""
    items: str = "items"
    """Path of the list of records."""
    next_cursor: str = "next_cursor"
    """Path of the next page's cursor, or of its URL on the same host; null, absent or empty on the last page."""
    cursor_param: str = "cursor"
    pages: PagesSettings = Field(default_factory=PagesSettings)
    id: str = "id"
    """Path of a record's id, which goes into the primary key column `id`."""
    updated: str | None = None
    """Path of a record's time (or number) of change; the next run sends the greatest one as `updated_param`."""
    updated_param: str | None = None
    updated_until_param: str | None = None
    """Parameter for an upper bound of `updated`: the time at which a pass starts. None: none is sent."""
    updated_as: Literal["seconds", "milliseconds"] | None = None
    """Numbers at `updated` are times since 1970. None: they are numbers such as revisions, and text is a time if it is
    ISO 8601."""
    lookback: Annotated[Duration, Field(ge=timedelta(), le=timedelta(days=366))] = timedelta(minutes=5)
    """The next run asks for changes since this long before the greatest one, where that is a time: a transaction that
    took long to commit appears with an earlier time."""
    deleted: str | None = None
    """Path of a tombstone: a record with a value there that is not null, false or empty deletes its row."""
    table: str
    """`orders` or `schema.orders`; made if it is not there. `{tenant}` comes last: `orders_{tenant}`."""
    columns: dict[str, ColumnSettings] = Field(default_factory=dict)
    """Empty: a JSON column `record` with the whole record, and `updated_at` as the API spells it."""
    database_url: str | None = None
    """None: the ledger's."""
    contract: Literal["discard", "freeze"] = "discard"
    """Fields of a record that no column has: leave them out and report them, or fail. `freeze` fails, too, where a
    record lacks the field of a column whose `absent` is `keep`."""
    delete_missing: bool = False
    """At the end of a full run, delete the rows whose ids it has not met."""
    on_bad_record: Literal["fail", "skip", "keep"] = "fail"
    """A record without an id or with a value of another type: stop before its page, leave it out and count it, or also
    keep it, with the reason, in the table `penstock_sync_bad_records`."""
    timeout_seconds: float = Field(default=30.0, gt=0)
    """For each request to connect, and between two pieces of its answer."""
    max_page_bytes: int = Field(default=32 * MEGABYTE, ge=1024)

    @field_validator("columns", mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return expanded(value)

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
        if self.updated is None and (self.updated_until_param or self.updated_as):
            raise ValueError("updated_until_param and updated_as need updated")
        if self.body and self.method == "GET":
            raise ValueError('body needs method = "POST"')
        key = self.columns.get("id")
        if key is not None and (key.type not in ("str", "int") or key.path is not None):
            raise ValueError("column 'id' takes type str or int and no path; the setting `id` is its path")
        in_source = TENANT in " ".join(
            [self.url, *self.headers.values(), *map(str, self.params.values()), str(self.body)]
        )
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
    def guard(self) -> str | None:
        """Column that has the record's time of change; None: no column has it."""
        if self.updated is None or not self.columns:
            return "updated_at" if self.updated else None
        names = (name for name, column in self.columns.items() if (column.path or name) == self.updated)
        return next(names, None)

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
                "body": _filled(self.body, tenant),
            }
        )


def _filled(value: Any, tenant: str) -> Any:
    match value:
        case str():
            return fill(value, tenant)
        case dict():
            return {name: _filled(item, tenant) for name, item in value.items()}
        case list():
            return [_filled(item, tenant) for item in value]
        case _:
            return value
