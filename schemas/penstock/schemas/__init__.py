"""Contracts that all parts share: jobs, kinds, retry policies, the wire, and the ledger's tables.

A name is loaded when it is first used: the version and the names of states need no pydantic.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.config.loaded import load_on_use

if TYPE_CHECKING:
    from penstock.config.errors import DuplicateKind, InvalidEvent, KindError, UndecodableMessage, WrongSignature
    from penstock.schemas.jobs.job import Job
    from penstock.schemas.jobs.kind import Kind, Priority, registry, upcasts
    from penstock.schemas.jobs.limits import Concurrency, Rate
    from penstock.schemas.jobs.retry_policy import RetryPolicy
    from penstock.schemas.jobs.sensitive import Sensitive
    from penstock.schemas.schedules.decorator import scheduled
    from penstock.schemas.states import Outcome, State

__version__ = "0.1.0"

__all__ = [
    "Concurrency",
    "DuplicateKind",
    "InvalidEvent",
    "Job",
    "Kind",
    "KindError",
    "Outcome",
    "Priority",
    "Rate",
    "RetryPolicy",
    "Sensitive",
    "State",
    "UndecodableMessage",
    "WrongSignature",
    "__version__",
    "registry",
    "scheduled",
    "upcasts",
]

_HOMES = {
    "Concurrency": ".jobs.limits",
    "DuplicateKind": "penstock.config.errors",
    "InvalidEvent": "penstock.config.errors",
    "Job": ".jobs.job",
    "Kind": ".jobs.kind",
    "KindError": "penstock.config.errors",
    "Outcome": ".states",
    "Priority": ".jobs.kind",
    "Rate": ".jobs.limits",
    "RetryPolicy": ".jobs.retry_policy",
    "Sensitive": ".jobs.sensitive",
    "State": ".states",
    "UndecodableMessage": "penstock.config.errors",
    "WrongSignature": "penstock.config.errors",
    "registry": ".jobs.kind",
    "scheduled": ".schedules.decorator",
    "upcasts": ".jobs.kind",
}
"""Name → module that defines it."""

__getattr__, __dir__ = load_on_use(__name__, _HOMES)
