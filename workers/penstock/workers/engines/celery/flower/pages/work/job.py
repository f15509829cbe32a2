"""`/jobs/ID`: one job with its attempts, why it isn't running, and what can be done about it."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from penstock.config.errors import JobNotFound
from penstock.ledger import effects
from penstock.ledger.queries.jobs import full_id, related, show
from penstock.ledger.rows import audit
from penstock.ledger.transitions.cancel import request_cancel
from penstock.ledger.transitions.replay import replay_one, retry
from penstock.ledger.transitions.reschedule import reschedule
from penstock.producers.explain import explain
from penstock.schemas.jobs.kind import registry
from penstock.schemas.states import State
from penstock.workers.engines.celery.flower.page import Act, Edit, Page, Parameters
from penstock.workers.engines.celery.flower.pages.work.jobs import read_due


class Job(Page):
    path, name, tab, title = r"/jobs/([^/]+)", "job", "jobs", "Job"
    template = "work/job.html"

    def read(self, query: Any, *path_arguments: str) -> dict[str, Any]:
        settings, scope = self.settings_of_penstock, self.person.scope
        try:
            job_id = full_id(self.ledger, path_arguments[0], scope=scope)
            row, attempts = show(self.ledger, job_id)
        except JobNotFound:
            job_id, row, attempts = path_arguments[0], None, ()
        explanation = explain(
            self.ledger,
            job_id,
            self.services.positions,
            lease=settings.lease,
            queues=self.services.queues,
            limits=self.services.limits,
            scope=scope,
        )
        values: dict[str, Any] = {"id": job_id, "explanation": asdict(explanation), "job": None, "attempts": []}
        if row is None:
            return values | {"effects": [], "decisions": [], "related": {}}
        return values | {
            "job": self._fields(row),
            "attempts": [attempt._asdict() for attempt in attempts],
            "effects": [
                {"key": row.key, "begun_at": row.begun_at, "done_at": row.done_at}
                for row in effects.effects_of(self.ledger, job_id)
            ],
            "decisions": [asdict(act) for act in audit.find(self.ledger, subject=job_id, limit=20)],
            "related": related(self.ledger, job_id, scope),
        }

    def _fields(self, row: Any) -> dict[str, Any]:
        fields: dict[str, Any] = row._asdict()
        payload = json.loads(row.payload) or {}
        fields["payload"] = registry.redact(row.kind, payload)
        fields["result"] = None if row.result is None else registry.hide_in(row.kind, json.loads(row.result), payload)
        fields["tags"] = json.loads(row.tags) if row.tags else []
        fields["embed"] = None
        if row.state == State.QUEUED:  # the column holds when it was sent
            fields["sent_at"], fields["due_at"] = row.due_at, None
        fields["trace_id"] = (row.traceparent or "").split("-")[1] if (row.traceparent or "").count("-") == 3 else None
        return fields


class JobAct(Act):
    """An act on one job."""

    def job_id(self, path_arguments: tuple[str, ...]) -> str:
        """Raises JobNotFound: it is not on record, or outside of the person's scope."""
        return full_id(self.ledger, path_arguments[0], scope=self.person.scope)


class CancelJob(JobAct):
    path = r"/jobs/([^/]+)/cancel"

    def do(self, body: Any, *path_arguments: str) -> dict[str, Any]:
        state = request_cancel(self.ledger, self.job_id(path_arguments), actor=self.person.name)
        return {"state": state, "message": "Asked to stop" if state == State.RUNNING else f"Now {state}"}


class RetryJob(JobAct):
    """Try it again, now. With `edit`, fields to set, for a dead job."""

    path = r"/jobs/([^/]+)/retry"

    class Body(Parameters):
        force: bool = False
        edit: Edit = None

    def do(self, body: Any, *path_arguments: str) -> dict[str, Any]:
        job_id, actor = self.job_id(path_arguments), self.person.name
        if body.edit:
            replay_one(self.ledger, job_id, actor=actor, edit=body.edit)
        else:
            retry(self.ledger, job_id, actor=actor, force=body.force, scope=self.person.scope)
        return {"message": "It runs again, now"}


class RescheduleJob(JobAct):
    path = r"/jobs/([^/]+)/reschedule"

    class Body(Parameters):
        due: str

    def do(self, body: Any, *path_arguments: str) -> dict[str, Any]:
        due_at = read_due(body.due)
        reschedule(self.ledger, self.job_id(path_arguments), due_at, actor=self.person.name)
        return {"due_at": due_at, "message": f"Due at {due_at:%Y-%m-%d %H:%M:%S} UTC"}


class DecideEffect(JobAct):
    """Say whether an effect in doubt happened."""

    path = r"/jobs/([^/]+)/effect"

    class Body(Parameters):
        key: str
        happened: bool

    def do(self, body: Any, *path_arguments: str) -> dict[str, Any]:
        job_id = self.job_id(path_arguments)
        effects.decide(self.ledger, job_id, body.key, happened=body.happened, actor=self.person.name)
        return {"message": "On record: it happened" if body.happened else "On record: it did not happen"}


HANDLERS = (Job, CancelJob, RetryJob, RescheduleJob, DecideEffect)
