"""What travels: jobs, kinds, retry policies, the wire, and the ledger's tables."""

from penstock.schemas.jobs import Job, Sensitive
from penstock.schemas.kinds import Kind, Priority, registry, upcasts
from penstock.schemas.retries import RetryPolicy
from penstock.schemas.states import Outcome, State

__all__ = ["Job", "Kind", "Outcome", "Priority", "RetryPolicy", "Sensitive", "State", "registry", "upcasts"]
