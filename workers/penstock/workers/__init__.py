"""Running jobs: handlers, the executor, the dispatcher, the engines, and the built-in workers.

The errors are those that a handler may raise or catch; `penstock.config.errors` draws the tree of all.
"""

from penstock.config.errors import (
    InvalidJob,
    InvalidKey,
    KindError,
    LedgerUnavailable,
    ObjectNotFound,
    PayloadTooLarge,
    PenstockError,
    StorageError,
)
from penstock.workers.handlers.context import Context
from penstock.workers.handlers.registry import handles
from penstock.workers.handlers.resources import override, provides
from penstock.workers.handlers.returns import Discard, InDoubt, JobCancelled, NotDone, Permanent, Retry, Snooze
from penstock.workers.handlers.storage import Storage
from penstock.workers.telemetry.failures.failure import Failure
from penstock.workers.telemetry.failures.hooks import on_failure

__all__ = [
    "Context",
    "Discard",
    "Failure",
    "InDoubt",
    "InvalidJob",
    "InvalidKey",
    "JobCancelled",
    "KindError",
    "LedgerUnavailable",
    "NotDone",
    "ObjectNotFound",
    "PayloadTooLarge",
    "PenstockError",
    "Permanent",
    "Retry",
    "Snooze",
    "Storage",
    "StorageError",
    "handles",
    "on_failure",
    "override",
    "provides",
]
