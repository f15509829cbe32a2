"""Rows of the table of steps, and where the job of a workflow waits."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from penstock.schemas.workflows import StepState

PARKED = timedelta(days=36_500)
"""How far ahead the job of a running workflow is due: by itself, never."""


def fresh_row(workflow_id: str, name: str, number: int = 0) -> dict[str, Any]:
    """A step's row as it is before the step begins."""
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
