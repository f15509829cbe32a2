"""The sync that a job names."""

from __future__ import annotations

import hashlib

from penstock.config.sections.builtin.syncs import SyncSettings
from penstock.config.settings import Settings
from penstock.schemas.builtin.syncs import RunSync
from penstock.workers.builtin.missing import lack_of
from penstock.workers.builtin.syncs.columns import MAX_ID
from penstock.workers.handlers.returns import Permanent


def missing_sync(job: RunSync, settings: Settings, tenant: str | None = None) -> str | None:
    """The lack of a worker whose settings do not have the job's sync; None if they have."""
    return lack_of("sync", job.sync, settings.syncs, tenant)


def find_sync(job: RunSync, tenant: str | None, settings: Settings) -> tuple[str, SyncSettings]:
    """The name under which its position is kept, and its settings, with `{tenant}` replaced.

    Raises:
        Permanent: they are missing, or it is not a sync for this tenant.
    """
    sync = settings.syncs.get(job.sync)
    if sync is None:
        raise Permanent(missing_sync(job, settings, tenant))
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
