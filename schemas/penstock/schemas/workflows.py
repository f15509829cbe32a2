"""States of workflows and of their steps, and the outline of a workflow for code that runs none of its methods."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Protocol


class WorkflowState(StrEnum):
    """The state of a workflow. The last three are final."""

    RUNNING = "running"
    FAILING = "failing"
    """A step is dead: running steps are waited for, and no step begins."""
    CANCELLING = "cancelling"
    """Its running steps were asked to stop."""
    COMPENSATING = "compensating"
    """The effects of its steps are undone, in reverse order."""
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        return self in (WorkflowState.SUCCEEDED, WorkflowState.FAILED, WorkflowState.CANCELLED)


class StepState(StrEnum):
    """The state of a step, or of a job of a fan-out."""

    PENDING = "pending"
    """A step that it needs has not ended yet."""
    RUNNING = "running"
    """Its job is sent, or waits for a retry."""
    WAITING = "waiting"
    """The step waits for a signal or a time."""
    SUCCEEDED = "succeeded"
    SKIPPED = "skipped"
    """There was nothing to do: its method returned None, its job was discarded, or a step that it needs was skipped."""
    DEAD = "dead"
    CANCELLED = "cancelled"
    COMPENSATED = "compensated"


DONE = frozenset({StepState.SUCCEEDED, StepState.SKIPPED})
"""States that let the next steps begin."""
BROKEN = frozenset({StepState.DEAD, StepState.CANCELLED})
"""States that make the workflow fail."""


class StepOutline(Protocol):
    """A step as its class declares it."""

    @property
    def shape(self) -> str:
        """The action of the step: `job`, `jobs`, `wait` or `sleep`."""

    @property
    def signal(self) -> Any:
        """The type of the signal it waits for."""


class WorkflowOutline(Protocol):
    """The steps of a workflow as its class declares them. A workflow keeps the graph that it began with."""

    @property
    def kind(self) -> str: ...
    @property
    def steps(self) -> Mapping[str, StepOutline]: ...
    @property
    def compensations(self) -> Mapping[str, StepOutline]: ...
    @property
    def graph(self) -> str:
        """Steps and compensations, as JSON."""

    @property
    def hash(self) -> str:
        """Hash of the workflow's graph."""


outlines: dict[str, Any] = {}
"""Kind → `WorkflowOutline` of each workflow that this process has imported. Typed as Any: the workers' definitions have
more than an outline."""
