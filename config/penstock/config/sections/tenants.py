"""Tenants in the settings: whom a section is for, and `{tenant}`, which is replaced by the tenant of a job."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

TENANT = "{tenant}"
EVERY = "*"
RESULT_FOLDERS = ("reports", "results")
"""Folders of the storage in which the results of jobs without a tenant are, in addition to `[uploads] prefix`."""
# One that differs in case alone has the same mailbox, host and (on some databases) table as another.
_PLAIN = re.compile(r"[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?")


def _names(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_names)]
"""Names, or one."""


def _not_empty(value: tuple[str, ...]) -> tuple[str, ...]:
    if not value or not all(value):
        raise ValueError('name one tenant at least, such as ["acme"], or write "*" for all of them')
    return value


Tenants = Annotated[Names, AfterValidator(_not_empty)]
"""Names of tenants, or one name; `*` stands for all of them."""


def includes(tenants: tuple[str, ...] | None, tenant: str) -> bool:
    """Whether a section that is declared for `tenants` is for this one. None: it is for no tenant."""
    return tenants is not None and (EVERY in tenants or tenant in tenants)


def is_for(tenants: tuple[str, ...] | None, tenant: str | None, *, by_tenant: bool) -> bool:
    """Whether a job of this tenant may use a section.

    Arguments:
        tenants: for whom it is declared. None: for every tenant if it is different for each, else for none.
        tenant: None: the job has none, and may use every section that is the same for all.
        by_tenant: whether it is different for each tenant.
    """
    if tenant is None:
        return not by_tenant
    return includes(tenants, tenant) or (tenants is None and by_tenant)


def fill(text: str, tenant: str) -> str:
    """The text with `{tenant}` replaced, in an address, a URL or the name of a table.

    Raises:
        ValueError: the tenant's name could be mistaken for another's there, or has letters that do not fit.
    """
    if TENANT in text and not _PLAIN.fullmatch(tenant):
        raise ValueError(
            f"tenant {tenant!r} does not fit into {text!r}, which takes names of a-z, 0-9, '_' and '-', and at most 63 "
            "letters"
        )
    return text.replace(TENANT, tenant)


def overlap(first: str, second: str) -> bool:
    """Whether one folder is the other or lies in it."""
    return f"{first}/".startswith(f"{second}/") or f"{second}/".startswith(f"{first}/")


def check_folder(value: str) -> str:
    """The folder, if it is fit for every storage. Raises ValueError."""
    if not value.isprintable() or "\\" in value or any(part in ("", ".", "..") for part in value.split("/")):
        raise ValueError(f"{value!r} is not a folder; write names with single slashes between them, such as a/b")
    return value


def _storage_prefix(value: str) -> str:
    head, _, rest = check_folder(value).partition(TENANT)
    shared = head.rpartition("/")[0]
    if value.count(TENANT) != 1 or not shared or set("{}") & set(head + rest):
        raise ValueError(
            f"{value!r} must have {TENANT} once, in a folder that is below another, such as tenants/{TENANT}: tenants "
            "would share a folder without it, and a tenant could have the name of another folder at the top"
        )
    for folder in RESULT_FOLDERS:
        if overlap(shared, folder):
            raise ValueError(f"{value!r} overlaps {folder}/, the results of other jobs; write tenants/{TENANT}")
    return value


StoragePrefix = Annotated[str, AfterValidator(_storage_prefix), Field(max_length=64)]
"""Folder of a tenant in the storage, with `{tenant}`."""


def shared_part(prefix: str) -> str:
    """The folder that has the folders of all tenants: `tenants` of `tenants/{tenant}/files`."""
    return prefix.partition(TENANT)[0].rpartition("/")[0]
