"""Running jobs: handlers, the executor, the ledger, the dispatcher, the engines, and the four built-in workers."""

from penstock.workers.handlers.context import Context
from penstock.workers.handlers.registry import handles
from penstock.workers.handlers.resources import override, provides
from penstock.workers.handlers.returns import Discard, InDoubt, JobCancelled, NotDone, Permanent, Retry, Snooze
from penstock.workers.handlers.storage import Storage

__all__ = [
    "Context",
    "Discard",
    "InDoubt",
    "JobCancelled",
    "NotDone",
    "Permanent",
    "Retry",
    "Snooze",
    "Storage",
    "handles",
    "override",
    "provides",
]
