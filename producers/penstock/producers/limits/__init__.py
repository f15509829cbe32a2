"""Limits: how many jobs run at a time, and how many begin in a while, over all workers, engines and brokers.

`rules` says which hold for a job, `store` counts in Redis, `gate` asks it for the executor. What is held back waits in
the ledger (`ledger/waits`), and the dispatcher (`dispatcher/limits`) sends it when it may run.
"""

from __future__ import annotations

from penstock.config.settings import Settings
from penstock.producers.limits.rules import store_url
from penstock.producers.limits.store import LimitStore


def open_store(settings: Settings, worker: str = "") -> LimitStore | None:
    """The store that the settings name; None: there is none. Connects with the first call."""
    url = store_url(settings)
    if url is None:
        return None
    timeout = settings.broker_timeout_seconds
    return LimitStore(url, prefix=settings.prefix, lease=settings.lease, timeout_seconds=timeout, worker=worker)
