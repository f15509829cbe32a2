"""The jobs. Those that count return the process of the database that their connection speaks to."""

from __future__ import annotations

from penstock.schemas import Job, RetryPolicy

ONE_ATTEMPT = RetryPolicy(max_attempts=1)


class Count(Job):
    """Count the crates, and with an open connection wait for others that do.

    Attributes:
        others: jobs of the same name that run at the same time.
    """

    name: str
    others: int = 0


class InThread(Count, kind="depot.thread", queue="depot", retry=ONE_ATTEMPT): ...


class InCoroutine(Count, kind="depot.coroutine", queue="depot", retry=ONE_ATTEMPT): ...


class InPool(Count, kind="depot.pool", queue="depot", retry=ONE_ATTEMPT): ...


class InChild(Count, kind="depot.child", queue="depot", retry=ONE_ATTEMPT, timeout=60): ...


class Wait(Job, kind="depot.wait", queue="depot", retry=ONE_ATTEMPT, timeout=1):
    """Wait in a coroutine for a lock of the database, longer than the timeout."""

    lock: int


class LeaveOpen(Job, kind="depot.leave", queue="depot", retry=ONE_ATTEMPT):
    """Begin a transaction in a thread and never end it."""


class CacheInThread(Job, kind="depot.cache.thread", queue="depot", retry=ONE_ATTEMPT): ...


class CacheInCoroutine(Job, kind="depot.cache.coroutine", queue="depot", retry=ONE_ATTEMPT): ...


class Lend(Job, kind="loans.lend", queue="depot"): ...
