"""A workflow on its way, in memory: its rows as they were read, what has happened since, and what that leads to.

Nothing here speaks to the database: `advancing` reads what this needs and writes what it decides.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from pydantic import TypeAdapter, ValidationError

from penstock.config.errors import PenstockError
from penstock.schemas.jobs.job import Job
from penstock.schemas.states import State
from penstock.schemas.wire.codec import explain
from penstock.schemas.workflows import BROKEN, DONE, StepState, WorkflowState
from penstock.workers.workflows.definition import Definition, Step, Taken
from penstock.workers.workflows.steps import Sleep, Wait

LOOK_AGAIN = timedelta(minutes=5)
"""After which a step is looked at whose job ended unheard of, as where somebody deleted it."""

ENDED_AS = {
    State.SUCCEEDED: StepState.SUCCEEDED,
    State.DISCARDED: StepState.SKIPPED,
    State.CANCELLED: StepState.CANCELLED,
    State.DEAD: StepState.DEAD,
}

_LEFT = BROKEN | {StepState.COMPENSATED}
"""What a retry would have to do with."""


class CannotBegin(Exception):
    """A step's method failed, or what it is given or has made does not fit."""


@dataclass(slots=True)
class Row:
    """A row of `penstock_steps` with number 0: a step. `seen_due_at` is its due time as it was read."""

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
        self.state, self.finished_at, self.error = state, now, error and error[:2000]
        self.due_at, self.changed = None, True


@dataclass(slots=True)
class Ended:
    """A job of a step that has ended, as the ledger has it."""

    number: int
    before: StepState
    state: State
    error: str | None


@dataclass(slots=True)
class Run:
    """One workflow.

    Attributes:
        own: the state of its own job.
        rows: its steps and compensations.
        made: what the last step that began has made: jobs, numbered from 1 where it fans out; 0 is its only one.
        finished: it has just come to its end. reopened: it had ended, and goes on.
    """

    id: str
    definition: Definition
    input: Job
    own: State
    state: WorkflowState
    now: datetime
    rows: dict[str, Row]
    ends_as: WorkflowState | None = None
    undo: bool = True
    error: str | None = None
    made: list[tuple[int, Job]] = field(default_factory=list)
    finished: bool = False
    reopened: bool = False
    changed: bool = False

    # What has happened.

    def job_ended(self, name: str, ended: Ended) -> None:
        """Take the end of one of a step's jobs in."""
        row, state = self.rows[name], ENDED_AS[ended.state]
        if ended.number == 0:
            if row.state == StepState.RUNNING or (row.state in BROKEN and state in DONE):
                row.end(state, self.now, ended.error if state in BROKEN else None)
        else:
            self._member_ended(row, ended, state)
        self._reopen()

    def _member_ended(self, row: Row, ended: Ended, state: StepState) -> None:
        if ended.before == StepState.RUNNING:
            row.done += 1
            row.failed += state in BROKEN
        elif ended.before in BROKEN and state in DONE:
            row.failed -= 1  # somebody replayed it
        else:
            return
        row.changed = True
        if state in BROKEN and row.error is None:
            row.error = (ended.error or str(ended.state))[:2000]
        assert row.members is not None
        if row.done == row.members and row.state in (StepState.RUNNING, *BROKEN):
            if row.failed:
                cancelled = self.ends_as == WorkflowState.CANCELLED
                row.end(StepState.CANCELLED if cancelled else StepState.DEAD, self.now, _first_of(row))
            else:
                row.end(StepState.SUCCEEDED, self.now)

    def _reopen(self) -> None:
        """A dead step that was replayed by hand and has succeeded since takes up the workflow that failed of it."""
        if self.state not in (WorkflowState.FAILED, WorkflowState.FAILING) or self.ends_as != WorkflowState.FAILED:
            return
        if not any(row.state in _LEFT for row in self.rows.values()):
            self.reopened = self.state.final
            self._become(WorkflowState.RUNNING)
            self.ends_as = self.error = None

    def time_is_up(self, name: str) -> None:
        """A step that waits for a time, or for an answer until then."""
        row = self.rows[name]
        if row.state != StepState.WAITING or self.state != WorkflowState.RUNNING:
            row.due_at, row.changed = None, True
            return
        given = json.loads(row.result) if row.result else {}
        if self.definition.steps[name].shape == "sleep" or "answer" in given or "otherwise" in given:
            row.end(StepState.SUCCEEDED, self.now)
        else:
            row.end(StepState.DEAD, self.now, "nobody answered in time")

    def answered(self, name: str) -> None:
        row = self.rows[name]
        if row.state == StepState.WAITING and row.result and "answer" in json.loads(row.result):
            row.end(StepState.SUCCEEDED, self.now)

    # What that leads to.

    def ready(self) -> list[Step]:
        """Steps that can begin now; those that cannot any more are skipped here."""
        found: list[Step] = []
        if self.state != WorkflowState.RUNNING:
            return found
        for step in self.definition.steps.values():
            row = self.rows[step.name]
            if row.state != StepState.PENDING or not all(self.rows[one].state in DONE for one in step.needs):
                continue
            if self._is_idle(step):
                row.end(StepState.SKIPPED, self.now)
            else:
                found.append(step)
        return found

    def _is_idle(self, step: Step) -> bool:
        """Whether what it needs was skipped, and it does not take None for that."""
        skipped = {one for one in step.needs if self.rows[one].state == StepState.SKIPPED}
        takes_none = {one.step for one in step.takes.values() if one.optional}
        return bool(skipped - takes_none)

    def begin(self, step: Step, results: Mapping[str, str | None]) -> None:
        """Call the step's method, and note what it makes.

        Arguments:
            results: as JSON, by the names of the steps it takes them of; None of one that was skipped.
        """
        row = self.rows[step.name]
        row.started_at, row.changed = self.now, True
        try:
            made = _made(self.input, step, results)
        except Exception as error:  # the user's method may raise anything
            row.end(StepState.DEAD, self.now, _line(error))
            return
        match made:
            case None:
                row.end(StepState.SKIPPED, self.now)
            case Wait():
                self._wait(row, made)
            case Sleep():
                row.state, row.due_at = StepState.WAITING, self.now + made.duration
            case list():
                row.state, row.members, row.done, row.failed = StepState.RUNNING, len(made), 0, 0
                row.due_at = None
                self.made = list(enumerate(made, 1))
                if not made:
                    row.end(StepState.SUCCEEDED, self.now)
            case _:
                row.state, row.due_at = StepState.RUNNING, self.now + LOOK_AGAIN
                self.made = [(0, made)]

    def refuse(self, name: str, error: Exception) -> None:
        """A job of this step cannot be sent, such as one that is too large: none of them is."""
        self.rows[name].members = None
        self.rows[name].end(StepState.DEAD, self.now, _line(error))

    def _wait(self, row: Row, wait: Wait[Any]) -> None:
        row.state = StepState.WAITING
        row.due_at = None if wait.within is None else self.now + wait.within
        if row.result is None and wait.has_otherwise:
            row.result = '{"otherwise": ' + TypeAdapter(wait.answer).dump_json(wait.otherwise).decode() + "}"
        self.answered(row.step)  # somebody may have been early

    def conclude(self) -> None:
        """What becomes of the workflow, now that all steps that can begin have begun."""
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
            self.error = f"step {first.step} is {first.state}: {first.error or 'no reason is recorded'}"[:2000]

    def _stop_waiting(self) -> None:
        """No answer and no time is waited for any more; a retry begins these steps anew."""
        for row in self._own_rows():
            if row.state == StepState.WAITING:
                row.state, row.due_at, row.changed = StepState.PENDING, None, True

    def _conclude_compensating(self) -> None:
        assert self.ends_as is not None
        for undo in self.definition.compensations.values():
            row = self.rows[undo.name]
            if row.state in BROKEN:
                self.error = f"{self.error}; compensation {row.step} is {row.state}: {row.error}"[:2000]
                self._finish(self.ends_as)
                return
            undone = self.rows[undo.undoes or ""]
            if row.state in DONE and undone.state != StepState.COMPENSATED:
                undone.state, undone.changed = StepState.COMPENSATED, True
        if not self._any(StepState.RUNNING) and not self.next_undo():
            self._finish(self.ends_as)

    def next_undo(self) -> Step | None:
        """The compensation to begin next: of the step that ended last of those that have done something."""
        stopped = any(self.rows[name].state in BROKEN for name in self.definition.compensations)
        if self.state != WorkflowState.COMPENSATING or not self.undo or stopped or self._any(StepState.RUNNING):
            return None
        waiting = [one for one in self.definition.compensations.values() if self._is_to_undo(one)]
        return max(waiting, key=lambda one: self.rows[one.undoes or ""].finished_at or self.now, default=None)

    def _is_to_undo(self, undo: Step) -> bool:
        done = self.rows[undo.undoes or ""]
        some = done.state in BROKEN and (done.members or 0) > done.failed  # of a fan-out
        return self.rows[undo.name].state == StepState.PENDING and (done.state == StepState.SUCCEEDED or some)

    def _finish(self, state: WorkflowState) -> None:
        self._become(state)
        self.finished = True

    def _become(self, state: WorkflowState) -> None:
        self.state, self.changed = state, True

    def _own_rows(self) -> Iterator[Row]:
        return (self.rows[name] for name in self.definition.steps)

    def _any(self, state: StepState) -> bool:
        return any(row.state == state for row in self.rows.values())


def _made(input: Job, step: Step, results: Mapping[str, str | None]) -> Any:
    """What the method makes: checked, and a list where the step fans out."""
    arguments = {name: _value(name, taken, results[taken.step]) for name, taken in step.takes.items()}
    over = next((name for name, taken in step.takes.items() if taken.each), None)
    if over is not None:
        items = arguments.pop(over)
        made: Any = [step.function(input, **arguments, **{over: item}) for item in items]
        made = [one for one in made if one is not None]
    else:
        made = step.function(input, **arguments)
    expected = {"wait": (Wait,), "sleep": (Sleep,)}.get(step.shape, step.makes)
    if made is None and not step.optional:
        raise CannotBegin("its method returned None, which its annotation does not say")
    if step.fans_out != isinstance(made, list) and made is not None:
        raise CannotBegin(f"its method returned {type(made).__name__}, which its annotation does not say")
    for one in made if isinstance(made, list) else [made]:
        if one is not None and not isinstance(one, expected):
            raise CannotBegin(f"its method made {type(one).__name__}, which its annotation does not say")
    return made


def _value(name: str, taken: Taken, result: str | None) -> Any:
    if result is None:
        return None
    try:
        if taken.path:
            value = json.loads(result)
            for part in taken.path:
                value = value[part]
            result = json.dumps(value)
        return taken.reads.validate_json(result)
    except ValidationError as error:
        raise CannotBegin(
            f"the result of step {taken.step} does not fit parameter {name!r}: {explain(error)}"
        ) from error
    except (LookupError, TypeError):
        path = ".".join(taken.path)
        raise CannotBegin(f"the result of step {taken.step} has no {path!r}, which {name!r} is to map over") from None


def _first_of(row: Row) -> str:
    return f"{row.failed:,} of {row.members:,} jobs did not succeed, the first of them: {row.error}"


def _line(error: Exception) -> str:
    if isinstance(error, CannotBegin | PenstockError):
        text = str(error)
    else:
        text = f"its method raised {type(error).__name__}: {error}"
    return text.replace("\0", "").encode(errors="replace").decode()
