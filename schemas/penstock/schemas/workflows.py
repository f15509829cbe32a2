"""The states of workflows and of their steps."""

from __future__ import annotations

from enum import StrEnum


class WorkflowState(StrEnum):
    """Where a workflow is. The last three are final."""

    RUNNING = "running"
    FAILING = "failing"
    """A step is dead; those that run are waited for, and no other begins."""
    CANCELLING = "cancelling"
    """Its running steps are asked to stop."""
    COMPENSATING = "compensating"
    """What its steps did is undone, in reverse."""
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        return self in (WorkflowState.SUCCEEDED, WorkflowState.FAILED, WorkflowState.CANCELLED)


class StepState(StrEnum):
    """Where a step is, or one of the jobs of a fan-out."""

    PENDING = "pending"
    """What it needs has not ended yet."""
    RUNNING = "running"
    """Its job is sent, or waits for a retry."""
    WAITING = "waiting"
    """For an answer, or for a time."""
    SUCCEEDED = "succeeded"
    SKIPPED = "skipped"
    """There was nothing to do: its method returned None, its job was discarded, or what it needs was skipped."""
    DEAD = "dead"
    CANCELLED = "cancelled"
    COMPENSATED = "compensated"


DONE = frozenset({StepState.SUCCEEDED, StepState.SKIPPED})
"""What lets the next steps begin."""
BROKEN = frozenset({StepState.DEAD, StepState.CANCELLED})
"""What makes the workflow fail."""
