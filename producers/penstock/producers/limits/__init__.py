"""Limits: how many jobs run at a time, and how many begin in a while, over all workers, engines and brokers.

`rules` says which hold for a job, `store` counts in Redis, `gate` asks it for the executor. What is held back waits in
the ledger (`ledger/waits`), and the dispatcher (`dispatcher/limits`) sends it when it may run.
"""

from __future__ import annotations

from penstock.config.settings import Settings
from penstock.producers.limits.rules import store_url
from penstock.producers.limits.store import LimitStore
from penstock.producers.senders.redis.connections import RedisConnections


def open_store(settings: Settings, worker: str = "", connections: RedisConnections | None = None) -> LimitStore | None:
    """The store that the settings name; None: there is none. Connects with the first call.

    Arguments:
        connections: used if they are to the same Redis.
    """
    url = store_url(settings)
    if url is None:
        return None
    if connections is None or connections.url != url:
        connections = RedisConnections(url, timeout_seconds=settings.broker_timeout_seconds)
    return LimitStore(connections, prefix=settings.prefix, lease=settings.lease, worker=worker)
