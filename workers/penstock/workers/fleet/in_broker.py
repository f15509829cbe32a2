"""Jobs that wait in the broker and are not on record: no worker has seen them, so the ledger does not know them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from penstock.config.errors import BrokerUnavailable
from penstock.ledger.queries.jobs import JobFilter, kind_names, recorded_ids
from penstock.ledger.sql.database import Database
from penstock.producers.senders.backlogs import QueueBacklog
from penstock.producers.senders.peeks import End, Peeks, WaitingJob
from penstock.schemas.jobs.kind import DEAD_QUEUE, DISPATCHER_QUEUE

MOST = 200
"""Jobs of each lane that are looked at."""
_MOST_QUEUES = 200

_FILTERS = frozenset({"id_prefix", "kind", "queue", "tenant", "key", "tags", "enqueued_since", "enqueued_until"})
"""Filters that a message can match. Whatever the others ask for, only the ledger knows."""


@dataclass(frozen=True, slots=True)
class InBroker:
    """Jobs that wait in the broker and are not on record.

    Attributes:
        jobs: those that match, of those that were looked at.
        waiting: all jobs that wait in these queues of the broker, on record or not.
        note: why jobs may be missing here; None: none are.
    """

    jobs: list[WaitingJob]
    waiting: int
    note: str | None

    def rows(self) -> list[dict[str, Any]]:
        """The jobs as plain values."""
        return [job._asdict() for job in self.jobs]


def find_in_broker(
    database: Database,
    peeks: Peeks | None,
    backlogs: Mapping[str, QueueBacklog],
    filter: JobFilter,
    *,
    end: End = "newest",
    limit: int = 50,
) -> InBroker:
    """Look for jobs that wait in these queues and are not on record. Nothing in the broker changes.

    Arguments:
        peeks: None: the broker cannot be looked into.
        backlogs: the queues of the broker.
        filter: those of a job's message; with any other one nothing matches.
        end: which `MOST` jobs of each lane are looked at, and the order.

    Raises:
        LedgerUnavailable. A broker that does not answer is in `note`.
    """
    lanes = {DISPATCHER_QUEUE, *([filter.queue] if filter.queue is not None else backlogs)} - {DEAD_QUEUE}
    queues = sorted(queue for queue in lanes if queue in backlogs and backlogs[queue].jobs)
    waiting = sum(backlogs[queue].jobs for queue in queues if filter.scope.includes_queue(queue))
    if ledger_only := sorted(filter.given.keys() - _FILTERS):
        return InBroker([], waiting, f"{', '.join(ledger_only)}: only what is on record can match")
    if peeks is None:
        return InBroker([], waiting, "RabbitMQ shows a job only by delivering it, which counts against it")
    try:
        peek = peeks.read(queues[:_MOST_QUEUES], end, MOST)
    except BrokerUnavailable as error:
        return InBroker([], waiting, str(error))
    matching = [job for job in peek.jobs if _matches(job, filter)]
    recorded = recorded_ids(database, [job.id for job in matching])
    jobs = [job for job in matching if job.id not in recorded]
    complete = peek.complete and len(queues) <= _MOST_QUEUES and len(jobs) <= limit
    note = None if complete else f"the {end} {MOST} of each lane were looked at, and at most {limit:,} are shown"
    return InBroker(jobs[:limit], waiting, note)


def _matches(job: WaitingJob, filter: JobFilter) -> bool:
    since, until = filter.enqueued_since, filter.enqueued_until
    return (
        filter.includes(job)
        and (filter.kind is None or job.kind in kind_names(filter.kind))
        and set(filter.tags) <= set(job.tags)
        and (since is None or job.added_at >= since)
        and (until is None or job.added_at < until)
    )
