"""What travels: jobs, kinds, retry policies, the wire, and the ledger's tables."""

from penstock.schemas.jobs import Job, Sensitive
from penstock.schemas.kinds import Kind, Priority, registry, upcasts
from penstock.schemas.limits import Concurrency, Rate
from penstock.schemas.retries import RetryPolicy
from penstock.schemas.schedules import scheduled
from penstock.schemas.states import Outcome, State

__all__ = [
    "Concurrency",
    "Job",
    "Kind",
    "Outcome",
    "Priority",
    "Rate",
    "RetryPolicy",
    "Sensitive",
    "State",
    "registry",
    "scheduled",
    "upcasts",
]
