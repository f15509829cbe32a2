"""Workflows as clients see and control them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StrictBool, model_validator

from penstock.schemas.workflows import StepState, WorkflowState


class _Seen(BaseModel):
    id: Annotated[str, Field(description="That of its job.")]
    kind: str
    state: WorkflowState
    queue: Annotated[str | None, Field(description="Of its job, as is the tenant.")]
    tenant: str | None
    started_at: datetime
    finished_at: datetime | None
    error: Annotated[str | None, Field(description="Which step failed, and why; or why it rests.")]


class WorkflowSummary(_Seen):
    """A workflow among others."""

    done: Annotated[int, Field(description="How many of its steps have ended.")]
    steps: Annotated[int, Field(description="How many it has, compensations among them.")]


class WorkflowList(BaseModel):
    workflows: list[WorkflowSummary]


class StepView(BaseModel):
    """A step: what it needs, what it makes, and its state."""

    name: str
    needs: list[str] = []
    takes: Annotated[
        dict[str, str], Field(description="The step whose result each parameter takes, or its field.")
    ] = {}
    makes: Annotated[list[str], Field(description="Kinds of jobs; or `wait` or `sleep`.")]
    fans_out: bool = False
    compensate: Annotated[str | None, Field(description="The compensation that undoes it.")] = None
    undoes: Annotated[str | None, Field(description="Of a compensation: the step that it undoes.")] = None
    state: StepState
    job_id: str | None
    members: Annotated[int | None, Field(description="How many jobs it has, where it fans out.")]
    done: Annotated[int, Field(description="How many of these have ended.")]
    failed: Annotated[int, Field(description="And how many of them not well.")]
    started_at: datetime | None
    finished_at: datetime | None
    error: str | None


class WorkflowView(_Seen):
    """A workflow as the ledger has it, without inputs and results."""

    definition: Annotated[str, Field(description="A hash of the graph that it began with.")]
    ends_as: Annotated[
        WorkflowState | None, Field(description="What it comes to when its steps have stopped: failed or cancelled.")
    ]
    undo: Annotated[bool, Field(description="Whether its compensations are run before.")]
    overdue_since: Annotated[datetime | None, Field(description="Since when a dispatcher should have moved it on.")]
    steps: list[StepView]


class Retry(BaseModel):
    """Where to start again, and with which input; by default at what failed."""

    model_config = ConfigDict(extra="forbid")

    from_step: Annotated[str | None, Field(description="Start this step and all that follow it again.")] = Field(
        default=None, alias="from", max_length=127
    )
    everything: StrictBool = Field(
        default=False, alias="all", description="Begin all over, with the definition of now."
    )
    input: Annotated[
        dict[str, Any], Field(description="Fields of its input to set, for the steps that start again.")
    ] = {}

    @model_validator(mode="after")
    def _one_of_them(self) -> Retry:
        if self.everything and self.from_step is not None:
            raise ValueError("give from or all")
        return self
