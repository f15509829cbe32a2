"""A running workflow in memory: its rows, the events since they were read, and the decisions that follow.

Nothing here speaks to the database: `advance` reads what this needs and writes what it decides.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from pydantic import TypeAdapter, ValidationError

from penstock.config.errors import PenstockError
from penstock.ledger.workflows.rows import StepRow
from penstock.schemas.jobs.job import Job
from penstock.schemas.states import State
from penstock.schemas.wire.codec import explain
from penstock.schemas.workflows import BROKEN, DONE, StepState, WorkflowState
from penstock.workers.workflows.definition import Definition, Step, StepInput
from penstock.workers.workflows.steps import Sleep, Wait

RECHECK_AFTER = timedelta(minutes=5)
"""After which a step is looked at again whose job ended without waking it, for example because its row was deleted."""

STEP_STATES = {
    State.SUCCEEDED: StepState.SUCCEEDED,
    State.DISCARDED: StepState.SKIPPED,
    State.CANCELLED: StepState.CANCELLED,
    State.DEAD: StepState.DEAD,
}
"""State of a job that has ended → state of its step."""

_TO_RETRY = BROKEN | {StepState.COMPENSATED}


class CannotBegin(Exception):
    """A step's method failed, or an input or a result of it does not fit."""


@dataclass(slots=True)
class JobEnd:
    """The end of a step's job.

    Attributes:
        number: of the job in its fan-out, from 1; 0: it is the step's only job.
        before: the state of its row until now.
    """

    number: int
    before: StepState
    state: State
    error: str | None


@dataclass(slots=True)
class Run:
    """A workflow.

    Attributes:
        own_state: the state of its own job.
        rows: its steps and compensations, by name.
        new_jobs: jobs of the step that began last, numbered from 1 where it fans out; 0 is a step's only job.
        raised: by the method of the first step that failed without a job, in this batch.
        finished: it has just ended. reopened: it had ended, and goes on.
    """

    id: str
    definition: Definition
    input: Job
    own_state: State
    state: WorkflowState
    now: datetime
    rows: dict[str, StepRow]
    ends_as: WorkflowState | None = None
    undo: bool = True
    error: str | None = None
    new_jobs: list[tuple[int, Job]] = field(default_factory=list)
    raised: Exception | None = None
    finished: bool = False
    reopened: bool = False
    changed: bool = False

    # Events.

    def apply_end(self, name: str, end: JobEnd) -> None:
        """Apply the end of a job to its step."""
        row, state = self.rows[name], STEP_STATES[end.state]
        if end.number == 0:
            if row.state == StepState.RUNNING or (row.state in BROKEN and state in DONE):
                row.end(state, self.now, end.error if state in BROKEN else None)
        else:
            self._apply_member_end(row, end, state)
        self._reopen()

    def _apply_member_end(self, row: StepRow, end: JobEnd, state: StepState) -> None:
        if end.before == StepState.RUNNING:
            row.done += 1
            row.failed += state in BROKEN
        elif end.before in BROKEN and state in DONE:
            row.failed -= 1  # it was replayed by hand
        else:
            return
        row.changed = True
        if state in BROKEN and row.error is None:
            row.error = end.error or str(end.state)
        assert row.members is not None
        if row.done == row.members and row.state in (StepState.RUNNING, *BROKEN):
            if row.failed:
                cancelled = self.ends_as == WorkflowState.CANCELLED
                row.end(StepState.CANCELLED if cancelled else StepState.DEAD, self.now, _first_error(row))
            else:
                row.end(StepState.SUCCEEDED, self.now)

    def _reopen(self) -> None:
        """Resume a workflow that failed, if its dead steps were replayed by hand and have succeeded since."""
        if self.state not in (WorkflowState.FAILED, WorkflowState.FAILING) or self.ends_as != WorkflowState.FAILED:
            return
        if not any(row.state in _TO_RETRY for row in self.rows.values()):
            self.reopened = self.state.final
            self._become(WorkflowState.RUNNING)
            self.ends_as = self.error = None

    def apply_timeout(self, name: str) -> None:
        """Apply the due time of a step that sleeps, or waits for a signal; the signal may be there by then."""
        row = self.rows[name]
        if row.state != StepState.WAITING or self.state != WorkflowState.RUNNING:
            row.due_at, row.changed = None, True
            return
        signal = json.loads(row.result) if row.result else {}
        if self.definition.steps[name].shape == "sleep" or "answer" in signal or "otherwise" in signal:
            row.end(StepState.SUCCEEDED, self.now)
        else:
            row.end(StepState.DEAD, self.now, "nobody answered in time")

    # Decisions.

    def ready(self) -> list[Step]:
        """Steps that can begin now. Steps that have nothing to do are skipped here."""
        ready: list[Step] = []
        if self.state != WorkflowState.RUNNING:
            return ready
        for step in self.definition.steps.values():
            row = self.rows[step.name]
            if row.state != StepState.PENDING or not all(self.rows[name].state in DONE for name in step.needs):
                continue
            if self._has_nothing_to_do(step):
                row.end(StepState.SKIPPED, self.now)
            else:
                ready.append(step)
        return ready

    def _has_nothing_to_do(self, step: Step) -> bool:
        """Whether a step that it needs was skipped, and it does not take None for its result."""
        skipped = {name for name in step.needs if self.rows[name].state == StepState.SKIPPED}
        takes_none = {input.step for input in step.inputs.values() if input.optional}
        return bool(skipped - takes_none)

    def begin(self, step: Step, results: Mapping[str, str | None]) -> None:
        """Call the step's method, and note what it returns.

        Arguments:
            results: name of the step → its result as JSON; None: it was skipped.
        """
        row = self.rows[step.name]
        row.started_at, row.changed = self.now, True
        try:
            returned = _call(self.input, step, results)
        except Exception as error:  # the user's method may raise anything
            if not isinstance(error, CannotBegin):
                self.raised = self.raised or error
            row.end(StepState.DEAD, self.now, _reason(error))
            return
        match returned:
            case None:
                row.end(StepState.SKIPPED, self.now)
            case Wait():
                self._wait(row, returned)
            case Sleep():
                row.state, row.due_at = StepState.WAITING, self.now + returned.duration
            case list():
                row.state, row.members, row.done, row.failed = StepState.RUNNING, len(returned), 0, 0
                row.due_at = None
                self.new_jobs = list(enumerate(returned, 1))
                if not returned:
                    row.end(StepState.SUCCEEDED, self.now)
            case _:
                row.state, row.due_at = StepState.RUNNING, self.now + RECHECK_AFTER
                self.new_jobs = [(0, returned)]

    def refuse(self, name: str, error: Exception) -> None:
        """End a step with a job that cannot be sent, for example because it is too large. None of its jobs is sent."""
        self.raised = self.raised or error
        self.rows[name].members = None
        self.rows[name].end(StepState.DEAD, self.now, _reason(error))

    def _wait(self, row: StepRow, wait: Wait[Any]) -> None:
        row.state = StepState.WAITING
        row.due_at = None if wait.within is None else self.now + wait.within
        if row.result is None and wait.has_otherwise:
            row.result = '{"otherwise": ' + TypeAdapter(wait.answer).dump_json(wait.otherwise).decode() + "}"
        if row.result and "answer" in json.loads(row.result):  # the signal came early
            row.end(StepState.SUCCEEDED, self.now)

    def conclude(self) -> None:
        """Change the workflow's state, now that all steps that can start have started."""
        if self.state == WorkflowState.RUNNING:
            self._conclude_running()
        if self.state in (WorkflowState.FAILING, WorkflowState.CANCELLING):
            self._stop_waiting()
            if not self._any(StepState.RUNNING):
                self._become(WorkflowState.COMPENSATING)
        if self.state == WorkflowState.COMPENSATING:
            self._conclude_compensating()

    def _conclude_running(self) -> None:
        if all(self.rows[name].state in DONE for name in self.definition.steps):
            self._finish(WorkflowState.SUCCEEDED)
            return
        broken = [row for row in self._own_rows() if row.state in BROKEN]
        if broken:
            self._become(WorkflowState.FAILING)
            self.ends_as = WorkflowState.FAILED
            first = broken[0]
            self.error = f"step {first.step} is {first.state}: {first.error or 'no reason is recorded'}"

    def _stop_waiting(self) -> None:
        """Stop all waiting for signals and times; a retry begins these steps again."""
        for row in self._own_rows():
            if row.state == StepState.WAITING:
                row.state, row.due_at, row.changed = StepState.PENDING, None, True

    def _conclude_compensating(self) -> None:
        assert self.ends_as is not None
        for compensation in self.definition.compensations.values():
            row = self.rows[compensation.name]
            if row.state in BROKEN:
                self.error = f"{self.error}; compensation {row.step} is {row.state}: {row.error}"
                self._finish(self.ends_as)
                return
            undone = self.rows[compensation.undoes or ""]
            if row.state in DONE and undone.state != StepState.COMPENSATED:
                undone.state, undone.changed = StepState.COMPENSATED, True
        if not self._any(StepState.RUNNING) and not self.next_compensation():
            self._finish(self.ends_as)

    def next_compensation(self) -> Step | None:
        """The compensation to begin next: that of the last step to end, among those that have done something."""
        stopped = any(self.rows[name].state in BROKEN for name in self.definition.compensations)
        if self.state != WorkflowState.COMPENSATING or not self.undo or stopped or self._any(StepState.RUNNING):
            return None
        pending = [step for step in self.definition.compensations.values() if self._must_run(step)]
        return max(pending, key=lambda step: self.rows[step.undoes or ""].finished_at or self.now, default=None)

    def _must_run(self, compensation: Step) -> bool:
        done = self.rows[compensation.undoes or ""]
        has_succeeded_in_part = done.state in BROKEN and (done.members or 0) > done.failed  # of a fan-out
        is_pending = self.rows[compensation.name].state == StepState.PENDING
        return is_pending and (done.state == StepState.SUCCEEDED or has_succeeded_in_part)

    def _finish(self, state: WorkflowState) -> None:
        self._become(state)
        self.finished = True

    def _become(self, state: WorkflowState) -> None:
        self.state, self.changed = state, True

    def _own_rows(self) -> Iterator[StepRow]:
        return (self.rows[name] for name in self.definition.steps)

    def _any(self, state: StepState) -> bool:
        return any(row.state == state for row in self.rows.values())


def _call(job: Job, step: Step, results: Mapping[str, str | None]) -> Any:
    """Call the step's method, and check what it returns: a list where the step fans out."""
    arguments = {name: _value(name, input, results[input.step]) for name, input in step.inputs.items()}
    over = next((name for name, input in step.inputs.items() if input.each), None)
    if over is not None:
        items = arguments.pop(over)
        returned: Any = [step.function(job, **arguments, **{over: item}) for item in items]
        returned = [value for value in returned if value is not None]
    else:
        returned = step.function(job, **arguments)
    expected = {"wait": (Wait,), "sleep": (Sleep,)}.get(step.shape, step.makes)
    if returned is None and not step.optional:
        raise CannotBegin("its method returned None, which its annotation does not say")
    if step.fans_out != isinstance(returned, list) and returned is not None:
        raise CannotBegin(f"its method returned {type(returned).__name__}, which its annotation does not say")
    for value in returned if isinstance(returned, list) else [returned]:
        if value is not None and not isinstance(value, expected):
            raise CannotBegin(f"its method made {type(value).__name__}, which its annotation does not say")
    return returned


def _value(name: str, input: StepInput, result: str | None) -> Any:
    if result is None:
        return None
    try:
        if input.path:
            value = json.loads(result)
            for part in input.path:
                value = value[part]
            result = json.dumps(value)
        return input.adapter.validate_json(result)
    except ValidationError as error:
        raise CannotBegin(
            f"the result of step {input.step} does not fit parameter {name!r}: {explain(error)}"
        ) from error
    except (LookupError, TypeError):
        path = ".".join(input.path)
        raise CannotBegin(f"the result of step {input.step} has no {path!r}, which {name!r} is to map over") from None


def _first_error(row: StepRow) -> str:
    return f"{row.failed:,} of {row.members:,} jobs did not succeed, the first of them: {row.error}"


def _reason(error: Exception) -> str:
    if isinstance(error, CannotBegin | PenstockError):
        return str(error)
    return f"its method raised {type(error).__name__}: {error}"
