"""Rows of the table of steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from penstock.ledger.sql.text import LONGEST_ERROR, storable
from penstock.schemas.workflows import StepState


@dataclass(slots=True)
class StepRow:
    """A row of `penstock_steps` with number 0, in memory.

    Attributes:
        changed: whether it must be written.
        seen_due_at: its due time as it was read.
    """

    step: str
    state: StepState
    job_id: str | None
    members: int | None
    done: int
    failed: int
    due_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    error: str | None
    result: str | None
    changed: bool = False
    seen_due_at: datetime | None = field(init=False)

    def __post_init__(self) -> None:
        self.seen_due_at = self.due_at

    def end(self, state: StepState, now: datetime, error: str | None = None) -> None:
        self.state, self.finished_at, self.error = state, now, storable(error, LONGEST_ERROR)
        self.due_at, self.changed = None, True


def fresh_row(workflow_id: str, name: str, number: int = 0) -> dict[str, Any]:
    """A step's row before the step starts."""
    return {
        "workflow_id": workflow_id,
        "number": number,
        "step": name,
        "state": StepState.PENDING,
        "job_id": None,
        "members": None,
        "done": 0,
        "failed": 0,
        "due_at": None,
        "started_at": None,
        "finished_at": None,
        "error": None,
        "result": None,
    }
