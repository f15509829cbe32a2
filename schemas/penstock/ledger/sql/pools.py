"""Pools of connections: whose callers wait for as long as it takes, or for their turn on the same connection."""

from __future__ import annotations

import logging
from typing import Any

import sqlalchemy as sa
from sqlalchemy.pool import AsyncAdaptedQueuePool, QueuePool
from sqlalchemy.util import queue

WAIT_SECONDS = 1.0
"""Between two looks: a connection that could not be made wakes no one who waits for its place in the pool."""
_TURN_SECONDS = 0.25
"""The longest wait for a turn: the statement before may be waiting for a lock, or a silent server."""

logging.getLogger(__name__).setLevel(logging.WARNING)  # SQLAlchemy's pools log under the name of their module


class PatientPool(QueuePool):
    """A pool of which a thread waits for a connection. `Engine.dispose` ends the wait."""

    def _do_get(self) -> Any:
        while True:
            try:
                return super()._do_get()
            except sa.exc.TimeoutError:
                continue


class SharedPool(QueuePool):
    """A pool of which threads take turns on the connections that it keeps. One that waits too long for its turn has
    another connection, which is closed after use."""

    def _do_get(self) -> Any:
        if self._overflow >= 0:  # it has all that it keeps
            try:
                return self._pool.get(True, _TURN_SECONDS)
            except queue.Empty:
                pass
        return super()._do_get()


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
