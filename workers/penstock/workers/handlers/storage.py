"""The storage as a resource: a handler asks for it with `storage: Storage`."""

from __future__ import annotations

from collections.abc import Iterator

from penstock.config.settings import Settings
from penstock.producers.storage import Storage, TenantStorage, make_storage
from penstock.workers.handlers.resources import provides

__all__ = ["Storage", "open_storage", "storage_of"]


@provides
def open_storage(settings: Settings) -> Iterator[Storage]:
    """The storage of `storage_url`.

    Raises:
        ConfigError: the URL names no storage, or boto3 is not installed.
    """
    storage = make_storage(settings.storage_url)
    try:
        yield storage
    finally:
        storage.close()


def storage_of(tenant: str | None, storage: Storage, settings: Settings) -> Storage:
    """The part of the storage that a job of this tenant may use: its own folder, or all of it without a tenant."""
    return storage if tenant is None else TenantStorage(storage, tenant, settings.tenant_storage_prefix)
