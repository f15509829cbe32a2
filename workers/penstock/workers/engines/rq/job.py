"""The kinds of RQ's jobs: one for each of RQ's queues, since which functions there are is in RQ's pickles alone."""

from __future__ import annotations

from datetime import datetime

from penstock.schemas.jobs.adopted import AdoptedJob, adopt_kind
from penstock.schemas.jobs.kind import registry
from penstock.schemas.jobs.retry_policy import RetryPolicy
from penstock.schemas.wire.ids import derived_id


class RqJob(AdoptedJob):
    """A job of RQ, which keeps the function and its arguments in RQ's Redis, pickled."""

    rq_id: str
    """RQ's id, which is the job's key too. A job that is enqueued again, or repeats, has the same."""
    description: str = ""
    """RQ's: the call, if the code that enqueues gives no other."""
    function: str | None = None
    """Dotted name of the function, where the description is the call."""


def kind_of(queue: str) -> str:
    """Name of a queue of RQ's → kind of its jobs, which run in our queue of that name."""
    return f"rq.{queue}"


def job_class(queue: str) -> type[RqJob]:
    """The class of the jobs of one of RQ's queues, registered. Raises KindError: a `Job` has its kind."""
    kind = registry.find(kind_of(queue))
    if kind is not None and issubclass(kind.job, RqJob):
        return kind.job
    # RQ decides about retries: what its job raises in the end is final.
    retry = RetryPolicy(max_attempts=1, give_up_on=Exception)
    return adopt_kind(RqJob, kind_of(queue), __name__, queue=queue, retry=retry, search=("function",))


def job_id(rq_id: str, enqueued_at: datetime) -> str:
    """The id of what was enqueued under an id of RQ's at a time; read twice, it is one job."""
    return derived_id(enqueued_at, "rq", rq_id, enqueued_at.isoformat())
