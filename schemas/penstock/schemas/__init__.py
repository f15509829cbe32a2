"""Contracts that all parts share: jobs, kinds, retry policies, the wire, and the ledger's tables."""

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
