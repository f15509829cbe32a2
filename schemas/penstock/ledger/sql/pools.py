"""Pools of connections whose callers wait for as long as it takes."""

from __future__ import annotations

import logging
from typing import Any

import sqlalchemy as sa
from sqlalchemy.pool import AsyncAdaptedQueuePool, QueuePool

WAIT_SECONDS = 1.0
"""Between two looks: a connection that could not be made wakes no one who waits for its place in the pool."""

logging.getLogger(__name__).setLevel(logging.WARNING)  # SQLAlchemy's pools log under the name of their module


class PatientPool(QueuePool):
    """A pool of which a thread waits for a connection. `Engine.dispose` ends the wait."""

    def _do_get(self) -> Any:
        while True:
            try:
                return super()._do_get()
            except sa.exc.TimeoutError:
                continue


class AsyncPatientPool(PatientPool, AsyncAdaptedQueuePool):
    """A pool of which a coroutine waits for a connection; its cancellation ends the wait."""


def patient_options(most: int, *, is_async: bool = False) -> dict[str, Any]:
    """Options of `create_engine` for a patient pool.

    Arguments:
        most: connections at a time; half of them are kept open.
    """
    kept = (most + 1) // 2
    return {
        "poolclass": AsyncPatientPool if is_async else PatientPool,
        "pool_size": kept,
        "max_overflow": most - kept,
        "pool_timeout": WAIT_SECONDS,
    }
