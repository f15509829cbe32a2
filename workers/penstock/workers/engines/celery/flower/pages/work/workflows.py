"""`/workflows`: the list; one workflow with its graph; answers, retries and cancels."""

from __future__ import annotations

import json
from typing import Any

from pydantic import field_validator

from penstock.config.errors import JobNotFound
from penstock.ledger.queries.scope import Scope
from penstock.ledger.sql.database import Database
from penstock.ledger.workflows import commands
from penstock.schemas.workflows import WorkflowState
from penstock.workers.engines.celery.flower.page import Act, Edit, Page, Parameters

PAGE = 50


class Workflows(Page):
    path, name, tab, title = r"/workflows", "workflows", "workflows", "Workflows"
    template = "work/workflows.html"

    class Query(Parameters):
        state: WorkflowState | None = None
        kind: str | None = None
        cursor: str | None = None

    def read(self, query: Any, *path_arguments: str) -> dict[str, Any]:
        rows = _find(self.ledger, self.person.scope, query)
        return {
            "workflows": [row._asdict() for row in rows[:PAGE]],
            "cursor": rows[PAGE - 1].id if len(rows) > PAGE else None,
            "states": [str(state) for state in WorkflowState],
        }


class Workflow(Page):
    path, name, tab, title = r"/workflows/([^/]+)", "workflow", "workflows", "Workflow"
    template = "work/workflow.html"

    def read(self, query: Any, *path_arguments: str) -> dict[str, Any]:
        details = _visible(self.ledger, self.person.scope, path_arguments[0])
        workflow = details.as_json()
        waiting = [
            step["name"] for step in workflow["steps"] if step["makes"] == ["wait"] and step["state"] in _UNANSWERED
        ]
        final = WorkflowState(workflow["state"]).final
        return {"workflow": workflow, "now": details.now, "waiting": [] if final else waiting, "final": final}


_UNANSWERED = ("pending", "waiting")


class Signal(Act):
    """The answer to a step that waits for an event or a person."""

    path = r"/workflows/([^/]+)/steps/([^/]+)/signal"

    class Body(Parameters):
        answer: Any = None

        @field_validator("answer", mode="before")
        @classmethod
        def _read(cls, value: Any) -> Any:
            """A form has it as JSON; a word that is not JSON is that word."""
            if not isinstance(value, str):
                return value
            try:
                return json.loads(value)
            except ValueError:
                return value

    def do(self, body: Any, *path_arguments: str) -> dict[str, Any]:
        workflow_id, step = path_arguments
        _visible(self.ledger, self.person.scope, workflow_id)
        commands.signal(self.ledger, workflow_id, step, body.answer, actor=self.person.name)
        return {"message": f"Step {step} has its answer"}


class Retry(Act):
    """A retry of the failed steps, of a step and all after it, or of everything."""

    path = r"/workflows/([^/]+)/retry"

    class Body(Parameters):
        from_step: str | None = None
        everything: bool = False
        edit: Edit = None

    def do(self, body: Any, *path_arguments: str) -> dict[str, Any]:
        [workflow_id] = path_arguments
        _visible(self.ledger, self.person.scope, workflow_id)
        names = commands.retry(
            self.ledger,
            workflow_id,
            actor=self.person.name,
            from_step=body.from_step,
            everything=body.everything,
            edit=body.edit,
        )
        return {"message": f"It goes on with {', '.join(names)}", "steps": names}


class Cancel(Act):
    """A cancel: waiting steps end at once, running ones by their workers; by default compensations undo done ones."""

    path = r"/workflows/([^/]+)/cancel"

    class Body(Parameters):
        compensate: bool = True

    def do(self, body: Any, *path_arguments: str) -> dict[str, Any]:
        [workflow_id] = path_arguments
        _visible(self.ledger, self.person.scope, workflow_id)
        commands.cancel(self.ledger, workflow_id, actor=self.person.name, undo=body.compensate)
        return {"message": "It is being cancelled"}


def _find(ledger: Database, scope: Scope, query: Any) -> list[Any]:
    bounds = {"kinds": scope.kinds, "queues": scope.queues, "tenants": scope.tenants}
    matching: list[Any] = []
    before = query.cursor
    while len(matching) <= PAGE:
        rows = commands.find(ledger, state=query.state, kind=query.kind, before=before, limit=PAGE + 1, **bounds)
        matching += [row for row in rows if scope.includes(row.kind, row.queue, row.tenant)]
        if len(rows) <= PAGE:
            break
        before = rows[-1].id
    return matching[: PAGE + 1]


def _visible(ledger: Database, scope: Scope, workflow_id: str) -> commands.WorkflowDetails:
    """The workflow. Raises JobNotFound: it does not exist, or not for this person."""
    details = commands.show(ledger, workflow_id)
    if not scope.includes(details.row.kind, details.row.queue, details.row.tenant):
        raise JobNotFound(f"no workflow has the id {workflow_id}")
    return details


HANDLERS = (Workflows, Workflow, Signal, Retry, Cancel)
