"""Running jobs: handlers, the executor, the ledger, the dispatcher, the engines, and the four built-in workers."""

from penstock.workers.context import Context
from penstock.workers.handlers import handles
from penstock.workers.outcomes import Discard, InDoubt, JobCancelled, NotDone, Permanent, Retry, Snooze
from penstock.workers.resources import override, provides
from penstock.workers.storage import Storage

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
