"""Maintenance of RQ's registries, as its own workers do it."""

from __future__ import annotations

import time
from typing import cast

from rq import Queue, registry
from rq.registry import StartedJobRegistry

from penstock.ledger.rows.keys import exact, select_by_key
from penstock.ledger.sql.database import Database
from penstock.schemas.states import State
from penstock.workers.engines.rq.attempt import ThreadTimeout
from penstock.workers.engines.rq.job import kind_of

_EXPIRING = ("FinishedJobRegistry", "FailedJobRegistry", "DeferredJobRegistry", "ReadyJobRegistry")
"""RQ 2 has no ReadyJobRegistry."""

_AGAIN_SECONDS = 600


def clean(queue: Queue, database: Database) -> None:
    """Delete what has expired, and let RQ fail the jobs whose worker has died.

    Those that the ledger will run again stay as they are.

    Raises:
        LedgerUnavailable, RedisError: it is done again at the next turn.
    """
    for name in _EXPIRING:
        if (expiring := getattr(registry, name, None)) is not None:
            expiring(queue=queue).cleanup()
    started = StartedJobRegistry(queue=queue, death_penalty_class=ThreadTimeout)
    now = time.time()
    for execution in cast("list[bytes]", queue.connection.zrangebyscore(started.key, 0, now)):
        if _goes_on(database, kind_of(queue.name), started.parse_job_id(execution.decode())):
            queue.connection.zadd(started.key, {execution: now + _AGAIN_SECONDS}, xx=True)
    started.cleanup(now)


def _goes_on(database: Database, kind: str, rq_id: str) -> bool:
    """Whether the ledger has a job with this key that has not ended."""
    select = select_by_key(rq_id, kind, None)
    rows = database.read(lambda connection: connection.execute(select).all())
    return any(not State(row.state).final for row in exact(rows, rq_id, None))
