"""Running jobs: handlers, the executor, the dispatcher, the engines, and the built-in workers.

The errors are those that a handler may raise or catch; `penstock.config.errors` draws the tree of all. Importing this
package loads none of its names: a name is loaded when it is first used, and a command waits for no handler.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.config.loaded import load_on_use

if TYPE_CHECKING:
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
    from penstock.workers.handlers.returns import (
        Discard,
        InDoubt,
        JobCancelled,
        NotDone,
        Permanent,
        Retry,
        Snooze,
        SoftTimeLimitExceeded,
    )
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
    "SoftTimeLimitExceeded",
    "Storage",
    "StorageError",
    "handles",
    "on_failure",
    "override",
    "provides",
]

_HOMES = {
    "Context": ".handlers.context",
    "Discard": ".handlers.returns",
    "Failure": ".telemetry.failures.failure",
    "InDoubt": ".handlers.returns",
    "InvalidJob": "penstock.config.errors",
    "InvalidKey": "penstock.config.errors",
    "JobCancelled": ".handlers.returns",
    "KindError": "penstock.config.errors",
    "LedgerUnavailable": "penstock.config.errors",
    "NotDone": ".handlers.returns",
    "ObjectNotFound": "penstock.config.errors",
    "PayloadTooLarge": "penstock.config.errors",
    "PenstockError": "penstock.config.errors",
    "Permanent": ".handlers.returns",
    "Retry": ".handlers.returns",
    "Snooze": ".handlers.returns",
    "SoftTimeLimitExceeded": ".handlers.returns",
    "Storage": ".handlers.storage",
    "StorageError": "penstock.config.errors",
    "handles": ".handlers.registry",
    "on_failure": ".telemetry.failures.hooks",
    "override": ".handlers.resources",
    "provides": ".handlers.resources",
}
"""Name → module that defines it."""

__getattr__, __dir__ = load_on_use(__name__, _HOMES)
