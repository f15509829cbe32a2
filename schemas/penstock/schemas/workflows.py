"""The states of workflows and of their steps, and what those see of a workflow's class who run none of its methods."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Protocol


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


class StepOutline(Protocol):
    """What a class says of one step."""

    @property
    def shape(self) -> str:
        """What it does: `job`, `jobs`, `wait` or `sleep`."""

    @property
    def answer(self) -> Any:
        """The type of what it waits for."""


class Outline(Protocol):
    """What a class says of its steps. A workflow keeps the graph that it began with."""

    @property
    def steps(self) -> Mapping[str, StepOutline]: ...
    @property
    def compensations(self) -> Mapping[str, StepOutline]: ...
    @property
    def graph(self) -> str:
        """As JSON."""

    @property
    def hash(self) -> str:
        """Of the graph."""


outlines: dict[str, Any] = {}
"""An `Outline` of each workflow that this process has imported, by kind; Any, as it is more to those who run it."""
