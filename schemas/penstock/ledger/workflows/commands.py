"""Commands about workflows: find, show, signal, retry and cancel. Each that changes one is in the audit log."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from pydantic import TypeAdapter, ValidationError

from penstock.config.errors import InvalidJob, InvalidState, JobNotFound
from penstock.ledger.queries.scope import may_match
from penstock.ledger.rows import audit
from penstock.ledger.sql.clock import from_now
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import jobs, steps, workflows
from penstock.ledger.workflows import cancel as cancellation
from penstock.ledger.workflows import resume
from penstock.schemas.jobs.kind import registry
from penstock.schemas.wire.codec import explain
from penstock.schemas.workflows import StepState, WorkflowOutline, WorkflowState, outlines

_LISTED = ("id", "kind", "state", "started_at", "finished_at", "error")
_STEP_FIELDS = ("state", "job_id", "members", "done", "failed", "started_at", "finished_at", "error")
_OF_JOB = (jobs.c.queue, jobs.c.tenant)
_WITH_JOBS = workflows.outerjoin(jobs, jobs.c.id == workflows.c.id)


@dataclass(frozen=True, slots=True)
class WorkflowDetails:
    """A workflow as people see it.

    Attributes:
        row: of the table of workflows, with the queue and the tenant of its job.
        graph: name of the step → what it needs and makes.
        steps: name of the step → row.
        now: on the database's clock.
        overdue: since when a dispatcher should have looked at it; None: it is not overdue.
    """

    row: Any
    graph: dict[str, dict[str, Any]]
    steps: dict[str, Any]
    now: datetime
    overdue: datetime | None

    def as_json(self) -> dict[str, Any]:
        """The workflow and its steps, without inputs and results."""
        row: dict[str, Any] = self.row._asdict()
        del row["graph"]
        steps = []
        for name, declared in self.graph.items():
            step = self.steps[name]._asdict()
            steps.append({"name": name, **declared} | {key: step[key] for key in _STEP_FIELDS})
        return row | {"overdue_since": self.overdue, "steps": steps}


def find(
    database: Database,
    *,
    state: WorkflowState | None = None,
    kind: str | None = None,
    before: str | None = None,
    limit: int = 50,
    kinds: Sequence[str] | None = None,
    queues: Sequence[str] | None = None,
    tenants: Sequence[str] | None = None,
) -> Sequence[Any]:
    """Workflows, the newest first, each with the number of its steps and of those that have ended.

    Arguments:
        before: an id: only what comes after it in this order.
        kinds, queues: patterns, such as `invoice.*`; None: all. Some results may not match them, because some databases
            compare without case, and none knows `[a-z]`.
        tenants: names; None: all workflows, also those without a tenant.
    """
    its_steps = (steps.c.workflow_id == workflows.c.id, steps.c.number == 0)
    ended = sa.select(sa.func.count()).where(*its_steps, steps.c.finished_at.is_not(None)).scalar_subquery()
    every = sa.select(sa.func.count()).where(*its_steps).scalar_subquery()
    listed = [workflows.c[name] for name in _LISTED]
    select = sa.select(*listed, *_OF_JOB, ended.label("done"), every.label("steps")).select_from(_WITH_JOBS)
    if state is not None:
        select = select.where(workflows.c.state == state)
    if kind is not None:
        select = select.where(workflows.c.kind == kind)
    if before is not None:
        select = select.where(workflows.c.id < before)
    if kinds is not None:
        select = select.where(may_match(workflows.c.kind, kinds))
    if queues is not None:
        select = select.where(may_match(jobs.c.queue, queues))
    if tenants is not None:
        select = select.where(jobs.c.tenant.in_(tenants))
    return database.read(
        lambda connection: connection.execute(select.order_by(workflows.c.id.desc()).limit(limit)).all()
    )


def show(database: Database, workflow_id: str) -> WorkflowDetails:
    """A workflow with its steps. Raises JobNotFound."""

    def read_details(connection: sa.Connection) -> WorkflowDetails:
        select = sa.select(workflows, *_OF_JOB).select_from(_WITH_JOBS)
        row = _find(connection, select, workflow_id)
        select_steps = sa.select(steps).where(steps.c.workflow_id == workflow_id, steps.c.number == 0)
        now = connection.execute(sa.select(from_now())).scalar_one()
        due = sa.select(sa.func.min(steps.c.due_at)).where(steps.c.workflow_id == workflow_id, steps.c.due_at < now)
        return WorkflowDetails(
            row,
            json.loads(row.graph),
            {step.step: step for step in connection.execute(select_steps)},
            now,
            connection.execute(due).scalar(),
        )

    return database.read(read_details)


def signal(database: Database, workflow_id: str, step: str, answer: Any, *, actor: str, unchecked: bool = True) -> None:
    """Signal a step that waits, or will wait.

    Arguments:
        answer: the signal's value, as JSON values.
        unchecked: accept the value as it is where no module imported here declares its type. A value that does not fit
            is then found by the step that takes it, which dies.

    Raises:
        JobNotFound: the workflow does not exist. InvalidState: it has no such step, or the step no longer waits.
        InvalidJob: the value is not of the type the step waits for, or that type is not known here and must be.
    """

    def signal_step(connection: sa.Connection) -> None:
        row = _find(connection, database.locked(sa.select(workflows)), workflow_id)
        waits = [name for name, declared in json.loads(row.graph).items() if declared.get("makes") == ["wait"]]
        if step not in waits:
            raise InvalidState(
                f"workflow {workflow_id} has no step {step!r} that waits for an answer; "
                f"{'those that do: ' + ', '.join(waits) if waits else 'none of its steps does'}"
            )
        where = sa.and_(steps.c.workflow_id == workflow_id, steps.c.number == 0, steps.c.step == step)
        waiting = connection.execute(database.locked(sa.select(steps).where(where))).one()
        answered = waiting.result is not None and "answer" in json.loads(waiting.result)
        if WorkflowState(row.state).final or answered or waiting.state not in (StepState.PENDING, StepState.WAITING):
            state = row.state if WorkflowState(row.state).final else "answered" if answered else waiting.state
            raise InvalidState(f"step {step} of workflow {workflow_id} takes no answer: it is {state}")
        text = _checked(row, step, answer, unchecked)
        connection.execute(sa.update(steps).where(where).values(result='{"answer": ' + text + "}", due_at=from_now()))
        audit.write(
            connection, actor=actor, act="signal", subject=workflow_id, subject_kind="workflow", detail={"step": step}
        )

    database.write(signal_step)


def retry(
    database: Database,
    workflow_id: str,
    *,
    actor: str,
    from_step: str | None = None,
    everything: bool = False,
    edit: Mapping[str, Any] | None = None,
) -> list[str]:
    """Retry a workflow that has ended, by default from its failed steps. Returns the steps that go on.

    Arguments:
        from_step: start from this step, whether it failed or not.
        everything: start all over, with the current definition.
        edit: fields of its input to set, as JSON values. Steps that stay done do not see the edit, and neither does a
            job that is only tried again.

    Raises:
        JobNotFound; InvalidState: it has not ended, or there is nothing to retry; InvalidJob: the edit does not fit.
    """

    def retry_workflow(connection: sa.Connection) -> list[str]:
        row = _find(connection, database.locked(sa.select(workflows)), workflow_id)
        if not WorkflowState(row.state).final:
            raise InvalidState(f"workflow {workflow_id} is {row.state}; only one that has ended can be retried")
        if row.state == WorkflowState.SUCCEEDED and from_step is None and not everything:
            raise InvalidState(f"workflow {workflow_id} succeeded; to run it again all the same, say --from or --all")
        if edit:
            _edit(connection, workflow_id, row.kind, edit)
        if everything:
            outline: WorkflowOutline | None = outlines.get(row.kind)
            if outline is None:
                raise InvalidJob(f"no imported module defines workflow {row.kind!r}; import its module with --import")
            names = resume.restart(connection, database, workflow_id, outline)
        else:
            names = resume.resume(connection, database, workflow_id, from_step=from_step)
        detail = {"was": row.state, "from": from_step, "all": everything, "edited": sorted(edit or ())}
        audit.write(connection, actor=actor, act="retry", subject=workflow_id, subject_kind="workflow", detail=detail)
        return names

    return database.write(retry_workflow)


def cancel(database: Database, workflow_id: str, *, actor: str, undo: bool = True) -> None:
    """Cancel a workflow and its running steps.

    Arguments:
        undo: run the compensations of the steps that are done.

    Raises:
        JobNotFound; InvalidState: it has ended, or is cancelled already.
    """

    def cancel_workflow(connection: sa.Connection) -> None:
        row = _find(connection, database.locked(sa.select(workflows)), workflow_id)
        if row.state not in (WorkflowState.RUNNING, WorkflowState.FAILING):
            raise InvalidState(f"workflow {workflow_id} is {row.state} and cannot be cancelled")
        cancellation.cancel_workflows(connection, database, [workflow_id], undo=undo)
        audit.write(
            connection, actor=actor, act="cancel", subject=workflow_id, subject_kind="workflow", detail={"undo": undo}
        )

    database.write(cancel_workflow)


def _find(connection: sa.Connection, select: sa.Select[Any], workflow_id: str) -> Any:
    row = connection.execute(select.where(workflows.c.id == workflow_id)).first()
    if row is None:
        job = connection.execute(sa.select(jobs.c.kind, jobs.c.state).where(jobs.c.id == workflow_id)).first()
        detail = f"; job {workflow_id} ({job.kind}) is {job.state} and has not begun as one" if job else ""
        raise JobNotFound(f"no workflow with the id {workflow_id} is recorded in the ledger{detail}")
    return row


def _checked(row: Any, step: str, answer: Any, unchecked: bool) -> str:
    """The signal's value as JSON, checked where its type is known here."""
    text = json.dumps(answer)
    outline: WorkflowOutline | None = outlines.get(row.kind)
    declared = None if outline is None else outline.steps.get(step)
    if declared is None or declared.shape != "wait":
        if unchecked:
            return text
        raise InvalidJob(
            f"no imported module says what step {step!r} of workflow {row.kind!r} waits for; import it with --import"
        )
    type_: TypeAdapter[Any] = TypeAdapter(declared.signal)
    try:
        return type_.dump_json(type_.validate_json(text), by_alias=True).decode()
    except ValidationError as error:
        raise InvalidJob(f"workflow {row.id}, step {step}: the answer does not fit: {explain(error)}") from error


def _edit(connection: sa.Connection, workflow_id: str, kind_name: str, edit: Mapping[str, Any]) -> None:
    kind = registry.find(kind_name)
    if kind is None:
        raise InvalidJob(f"no imported module defines workflow {kind_name!r}; import its module with --import")
    row = connection.execute(sa.select(jobs.c.payload, jobs.c.version).where(jobs.c.id == workflow_id)).one()
    payload = registry.upcast(kind, json.loads(row.payload), row.version)
    try:
        job = kind.job.model_validate_json(json.dumps({**payload, **edit}))
    except ValidationError as error:
        raise InvalidJob(
            f"workflow {workflow_id}: the input does not fit {kind.name}: {explain(error, kind=kind)}"
        ) from error
    change = {"payload": job.model_dump_json(by_alias=True), "version": kind.version}
    connection.execute(sa.update(jobs).where(jobs.c.id == workflow_id).values(**change))
