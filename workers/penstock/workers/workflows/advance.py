"""Advances workflows: in one transaction for a batch, the ends of their steps are read, and what follows is decided and
written.

Each transaction holds the locks of its workflows' rows, so each end of a job is counted once and each step begins once,
however many dispatchers there are and wherever one of them dies. A due time in a step's row says that there is
something to do; it was written in the transaction of the job's outcome.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from pydantic import ValidationError

from penstock.config.errors import PenstockError, UndecodableMessage
from penstock.ledger.rows.jobs import RESERVED
from penstock.ledger.rows.steps import MARK, RESTS
from penstock.ledger.sql.clock import from_now
from penstock.ledger.sql.database import Database
from penstock.ledger.transitions import workflow_end
from penstock.ledger.transitions.enqueue import enter as insert_jobs
from penstock.ledger.transitions.replay.revive import revive_all
from penstock.ledger.workflows import cancel, read, record
from penstock.schemas.jobs.kind import registry
from penstock.schemas.states import FINAL, WAITING, State
from penstock.schemas.storage import Storage
from penstock.schemas.wire.codec import Envelope, encode, explain
from penstock.schemas.workflows import StepState, WorkflowState
from penstock.workers.workflows.definition import Definition, definitions, difference
from penstock.workers.workflows.results import StepResults
from penstock.workers.workflows.run import RECHECK_AFTER, STEP_STATES, JobEnd, Run

log = logging.getLogger("penstock.dispatcher")

_MOST_RESERVED = 20_000
"""More jobs than these are not reserved: the caller would hold up other workflows while it sends them."""
_SOON = timedelta(milliseconds=200)
_RECHECK_BORROWED_AFTER = timedelta(seconds=2)
"""After which a step is looked at again whose unique job is another one's: its end does not wake the step."""
_RECHECK_UNKNOWN_AFTER = timedelta(seconds=10)


@dataclass(frozen=True, slots=True)
class Advanced:
    """The outcome of a batch.

    Attributes:
        ended: ids of workflows that have ended.
        to_send: new jobs that are reserved for the caller.
        until: the end of that reservation.
        has_due: whether there are new jobs that are not reserved.
        failed: id of each workflow that has failed → its error.
        raised: id of a workflow → what the method of a step raised.
    """

    ended: list[str]
    to_send: list[Envelope]
    until: datetime
    has_due: bool
    failed: dict[str, str | None]
    raised: dict[str, Exception]


def advance(
    database: Database,
    ids: Sequence[str],
    *,
    open_storage: Callable[[], Storage],
    max_bytes: int,
    reserve: bool = False,
) -> Advanced:
    """Advance these workflows, without those that another dispatcher has locked.

    Arguments:
        open_storage: opens the storage of results that are not in the ledger.
        max_bytes: of a job's body.
        reserve: reserve the new jobs for the caller, who sends them; else they are due at once.

    Raises:
        LedgerUnavailable: nothing was written. Also any error of the database about one of the workflows.
    """
    return database.write(
        lambda connection: WorkflowBatch(connection, database, open_storage, max_bytes, reserve).advance(ids)
    )


class WorkflowBatch:
    """Workflows that are advanced in one transaction."""

    def __init__(
        self,
        connection: sa.Connection,
        database: Database,
        open_storage: Callable[[], Storage],
        max_bytes: int,
        reserve: bool,
    ) -> None:
        self._connection, self._database = connection, database
        self._max_bytes, self._reserve = max_bytes, reserve
        self._results = StepResults(connection, database, open_storage)
        self._changes = record.StepChanges()
        self._outgoing: list[tuple[Run, str, int, Envelope]] = []
        self._own_jobs: dict[str, Any] = {}

    def advance(self, ids: Sequence[str]) -> Advanced:
        self._now = self._connection.execute(sa.select(from_now())).scalar_one()
        runs = self._load(ids)
        self._apply_ends(runs)
        active = list(runs.values())
        while active:
            self._begin_steps(active)
            for run in active:
                run.conclude()
            # A step that was skipped, or compensated at once, may let another begin.
            active = [run for run in active if run.ready() or run.next_compensation()]
        self._write(list(runs.values()))
        envelopes = [envelope for *_, envelope in self._outgoing]
        to_send = [envelope for envelope in envelopes if self._reserve and registry[envelope.kind].unique is None]
        ended = [run.id for run in runs.values() if run.finished]
        failed = {run.id: run.error for run in runs.values() if run.finished and run.state == WorkflowState.FAILED}
        raised = {run.id: run.raised for run in runs.values() if run.raised is not None}
        return Advanced(ended, to_send, self._until, len(to_send) < len(envelopes), failed, raised)

    # Loading.

    def _load(self, ids: Sequence[str]) -> dict[str, Run]:
        rows = read.lock_workflows(self._connection, self._database, ids)
        if not rows:
            return {}
        self._own_jobs = read.own_jobs(self._connection, self._database, list(rows))
        steps = read.step_rows(self._connection, self._database, list(rows))
        runs = {}
        for id, row in rows.items():
            definition = definitions.get(row.kind)
            if definition is None:
                self._rest(row, None)
            elif definition.hash != row.definition:
                changes = difference(read.graph_of(self._connection, id), definition.graph)
                self._rest(row, f"{row.kind} was changed since it began ({changes})")
            elif (run := self._run(row, definition, steps[id])) is not None:
                runs[id] = run
        return runs

    def _run(self, row: Any, definition: Definition, steps: dict[str, Any]) -> Run | None:
        own_job = self._own_jobs.get(row.id)
        if own_job is None:
            record.fail_without_job(self._connection, row.id, "its own job is not recorded any more")
            return None
        try:
            kind = registry[row.kind]
            payload = json.dumps(registry.upcast(kind, json.loads(own_job.payload), own_job.version))
            input = kind.job.model_validate_json(payload)
        except (ValueError, UndecodableMessage) as error:
            reason = explain(error, kind=kind) if isinstance(error, ValidationError) else str(error)
            self._rest(row, f"its input does not fit {row.kind} any more ({reason})")
            return None
        run = Run(row.id, definition, input, State(own_job.state), WorkflowState(row.state), self._now, steps)
        run.ends_as, run.undo = row.ends_as and WorkflowState(row.ends_as), row.undo
        run.error = row.error
        if row.error is not None and row.error.startswith(RESTS):
            log.info("workflow %s (%s) goes on: it does not rest any more", row.id, row.kind)
            record.note_rest(self._connection, row.id, None)
            run.error = None
        return run

    def _rest(self, row: Any, reason: str | None) -> None:
        """Leave a workflow alone that began with other code, and look at it again later: a dispatcher with that
        code may be up. Cancelling needs no definition.

        Arguments:
            reason: None: this process does not know its class, and has nothing to say about it.
        """
        cancelling = row.state == WorkflowState.CANCELLING
        if row.state == WorkflowState.RUNNING and self._is_to_stop(row.id):
            cancel.cancel_workflows(self._connection, self._database, [row.id], undo=row.undo)
            cancelling = True
        if cancelling and cancel.finish_without_definition(self._connection, self._database, row.id, row.undo):
            return
        record.postpone_workflow(self._connection, row.id, self._now, _RECHECK_UNKNOWN_AFTER)
        if reason is None or WorkflowState(row.state).final:
            return
        error = (
            f"{RESTS}{reason}; run a dispatcher with the code it began with; or cancel it with --no-compensate, then "
            "retry it with --all"
        )
        # An error of another sort says which step failed, and is not overwritten.
        if row.error is None or (row.error.startswith(RESTS) and row.error != error[:2000]):
            log.warning("workflow %s (%s) %s", row.id, row.kind, error)
            record.note_rest(self._connection, row.id, error)

    # Ends of jobs.

    def _apply_ends(self, runs: dict[str, Run]) -> None:
        if not runs:
            return
        due = [row for row in read.due_steps(self._connection, self._now) if row.workflow_id in runs]
        for run in runs.values():
            if (
                not run.state.final
                and run.state != WorkflowState.CANCELLING
                and self._is_to_stop(run.id)
                and run.ends_as is None
            ):
                self._cancel(run)
        ids = [row.job_id for row in due if row.job_id is not None]
        jobs = read.step_jobs(self._connection, self._database, ids) if ids else {}
        for row in due:
            run = runs[row.workflow_id]
            if row.job_id is None:
                run.apply_timeout(row.step)
                continue
            job = jobs.get(row.job_id)
            if job is not None and job.state not in FINAL:
                is_own = job.embed is not None
                self._changes.postpone(row, self._now + (RECHECK_AFTER if is_own else _RECHECK_BORROWED_AFTER))
                continue
            state = State.DEAD if job is None else State(job.state)
            error = "its job is not recorded any more" if job is None else job.error
            run.apply_end(row.step, JobEnd(row.number, StepState(row.state), state, error))
            if row.number:
                self._changes.end_member(row, STEP_STATES[state], self._now if job is None else job.finished_at)
            else:
                step = run.rows[row.step]
                step.due_at, step.changed = None, True

    def _is_to_stop(self, workflow_id: str) -> bool:
        """Whether the own job of a workflow has ended, or is to be cancelled."""
        own_job = self._own_jobs.get(workflow_id)
        return own_job is not None and (own_job.state in FINAL or bool(own_job.cancel_requested))

    def _cancel(self, run: Run) -> None:
        """Stop the steps of a workflow whose own job is to be cancelled, or died."""
        cancel.cancel_workflows(self._connection, self._database, [run.id], undo=run.undo)
        run.state, run.ends_as, run.changed = WorkflowState.CANCELLING, WorkflowState.CANCELLED, True

    # New steps.

    def _begin_steps(self, runs: Sequence[Run]) -> None:
        ready = [(run, step) for run in runs for step in run.ready()]
        ready += [(run, step) for run in runs if (step := run.next_compensation()) is not None]
        results = self._results.of_steps([(run, input.step) for run, step in ready for input in step.inputs.values()])
        for run, step in ready:
            run.begin(step, {input.step: results[run.id, input.step] for input in step.inputs.values()})
            self._encode_jobs(run, step.name)

    def _encode_jobs(self, run: Run, step: str) -> None:
        """Make envelopes of the jobs of the step that has just started."""
        own_job = self._own_jobs[run.id]
        mark = json.dumps({MARK: run.id}).encode()
        outgoing = []
        try:
            for number, job in run.new_jobs:
                expires_in = job.kind().expires_in
                envelope = encode(
                    job,
                    tenant=own_job.tenant,
                    traceparent=own_job.traceparent,
                    expires_at=None if expires_in is None else self._now + expires_in,
                    max_bytes=self._max_bytes,
                    embed=mark,
                )
                outgoing.append((run, step, number, envelope))
        except PenstockError as error:
            run.refuse(step, error)
        else:
            self._outgoing += outgoing
        run.new_jobs = []

    # Writing.

    def _write(self, runs: Sequence[Run]) -> None:
        self._insert_jobs()
        self._end_own_jobs([run for run in runs if run.finished])
        for run in runs:
            if run.reopened and not run.finished:
                revive_all(self._connection, self._database, [run.id], parked=True)
            for row in run.rows.values():
                if row.changed:
                    self._changes.update(run.id, row)
        self._changes.write(self._connection, self._database)
        changes = [record.WorkflowChange(run.id, run.state, run.ends_as, run.error) for run in runs if run.changed]
        record.update_workflows(self._connection, self._database, changes)

    def _insert_jobs(self) -> None:
        """Insert the new jobs, for the dispatcher to send: together with the rows of their steps, or not at all."""
        if not self._outgoing:
            return
        envelopes = [envelope for *_, envelope in self._outgoing]
        self._reserve = self._reserve and len(envelopes) <= _MOST_RESERVED
        until = self._until if self._reserve else None
        admissions = insert_jobs(self._connection, self._database, envelopes, datetime.now(UTC), until)
        for (run, step, number, _), admission in zip(self._outgoing, admissions, strict=True):
            due_at = self._now + (RECHECK_AFTER if admission.created else _RECHECK_BORROWED_AFTER)
            if number == 0:
                run.rows[step].job_id, run.rows[step].due_at = admission.job_id, due_at
            else:
                self._changes.add_member(run.id, step, number, admission.job_id, due_at)

    @property
    def _until(self) -> datetime:
        """The end of the new jobs' reservation; writing them takes time, too."""
        return self._now + RESERVED + timedelta(milliseconds=len(self._outgoing))

    def _end_own_jobs(self, runs: Sequence[Run]) -> None:
        """End the workflows' own jobs with them. A workflow whose own job does not wait yet, because its start is just
        being recorded, ends a little later."""
        for run in runs:
            if run.own_state not in FINAL and run.own_state not in WAITING:
                run.finished = run.changed = False
                first = next(iter(run.rows.values()))
                first.due_at, first.changed = self._now + _SOON, True
        ended = [run for run in runs if run.finished and run.own_state in WAITING]
        succeeded = [run for run in ended if run.state == WorkflowState.SUCCEEDED]
        if succeeded:
            workflow_end.succeed_own_jobs(self._connection, self._database, self._results.of_workflows(succeeded))
        for run in ended:
            if run.state == WorkflowState.CANCELLED:
                workflow_end.cancel_own_job(self._connection, run.id)
            elif run.state == WorkflowState.FAILED:
                queue = self._own_jobs[run.id].queue
                workflow_end.bury_own_job(
                    self._connection, self._database, run.id, run.definition.kind, queue, run.error
                )
        inner = [run.id for run in ended if self._own_jobs[run.id].embed is not None]
        workflow_end.wake_outer_workflows(self._connection, self._database, inner)
