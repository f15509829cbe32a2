"""The states a job passes through and how an attempt ends."""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """Where a job is. `scheduled`, `retrying` and `queued` wait; the last four are final."""

    SCHEDULED = "scheduled"
    """Waits for its time in the ledger."""
    QUEUED = "queued"
    """Handed to the broker."""
    RUNNING = "running"
    RETRYING = "retrying"
    """Failed, and waits for its next attempt."""
    SUCCEEDED = "succeeded"
    DISCARDED = "discarded"
    """Given up on purpose: by its handler, or because it expired."""
    CANCELLED = "cancelled"
    DEAD = "dead"
    """A dead letter: not tried again by itself."""

    @property
    def final(self) -> bool:
        return self in FINAL


FINAL = frozenset({State.SUCCEEDED, State.DISCARDED, State.CANCELLED, State.DEAD})
WAITING = frozenset({State.SCHEDULED, State.RETRYING})


class Outcome(StrEnum):
    """How one attempt ended."""

    SUCCEEDED = "succeeded"
    RETRY = "retry"
    SNOOZED = "snoozed"
    DISCARDED = "discarded"
    CANCELLED = "cancelled"
    DEAD = "dead"
    INTERRUPTED = "interrupted"
    """Given back unfinished because the worker stopped; costs no attempt."""
    CRASHED = "crashed"
    """Its process died: the worker, as whoever took the job over found, or a child in which it ran apart."""
