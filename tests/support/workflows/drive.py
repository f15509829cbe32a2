"""Workflows by hand: what dispatchers and workers do to them, one thing at a time."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import jobs
from penstock.ledger.transitions.claim import Claim, ClaimRequest, claim
from penstock.ledger.transitions.due import envelope_of
from penstock.ledger.transitions.enqueue import enter
from penstock.ledger.transitions.outcome import AttemptOutcome, record
from penstock.ledger.workflows import commands
from penstock.ledger.workflows.read import due_workflows
from penstock.ledger.workflows.start import start_workflow
from penstock.schemas import Job, Outcome, State
from penstock.schemas.wire.codec import decode, encode
from penstock.workers.workflows.advance import Advanced, advance
from penstock.workers.workflows.definition import definitions
from support.workflows import jobs as acme


def no_storage() -> Any:
    raise AssertionError("no result is so large")


def advance_due(ledger: Database, *, max_bytes: int = 1_000_000, reserve: bool = False) -> Advanced:
    """Run a round of a dispatcher."""
    ids, _ = due_workflows(ledger)
    return advance(ledger, ids, open_storage=no_storage, max_bytes=max_bytes, reserve=reserve)


def start(ledger: Database, job: Job, **options: Any) -> str:
    """A workflow as its handler leaves it: entered, and its own job at rest."""
    envelope = encode(job, **options)
    definition = definitions[job.kind().name]

    def insert_workflow(connection: sa.Connection) -> None:
        enter(connection, ledger, [envelope], datetime.now(UTC))
        start_workflow(connection, ledger, envelope.id, definition)
        update = sa.update(jobs).where(jobs.c.id == envelope.id)
        connection.execute(update.values(due_at=None))

    ledger.write(insert_workflow)
    return envelope.id


def waiting(ledger: Database) -> list[Any]:
    """Envelopes that a dispatcher would send."""
    due = (jobs.c.state == State.SCHEDULED, jobs.c.due_at < datetime.now(UTC) + timedelta(days=1))
    return ledger.read(lambda connection: list(connection.execute(sa.select(jobs).where(*due).order_by(jobs.c.id))))


def run(ledger: Database, rows: list[Any], worker: str, results: Callable[[Any], Any], **how: Any) -> int:
    """Claim these jobs and record their ends, as a worker does. Returns how many were granted."""
    messages = [decode(envelope_of(row)) for row in rows]
    claims = claim(ledger, [ClaimRequest(message, False, 3) for message in messages], worker=worker)
    ends = [_outcome(granted, results, **how) for granted in claims if isinstance(granted, Claim)]
    return sum(record(ledger, ends, worker=worker)) if ends else 0


def _outcome(claim: Claim, results: Callable[[Any], Any], outcome: Outcome = Outcome.SUCCEEDED) -> AttemptOutcome:
    states = {Outcome.SUCCEEDED: State.SUCCEEDED, Outcome.DEAD: State.DEAD}
    end = AttemptOutcome(claim, outcome, states[outcome], datetime.now(UTC))
    if outcome == Outcome.SUCCEEDED:
        end.result = json.dumps(results(claim.message.job))
    else:
        end.error = "it failed"
    return end


def result(job: Any) -> Any:
    match job:
        case acme.SyncOrders():
            return {"rows": 1, "regions": job.regions}
        case acme.BuildReport():
            return {"region": job.region, "link": job.region}
        case _:
            return "done"


def move(ledger: Database) -> None:
    while due_workflows(ledger)[0]:
        advance_due(ledger)


def rows_of(ledger: Database, workflow_id: str) -> dict[str, Any]:
    return commands.show(ledger, workflow_id).steps


def count(ledger: Database, kind: str) -> int:
    select = sa.select(sa.func.count()).select_from(jobs).where(jobs.c.kind == kind)
    return ledger.read(lambda connection: int(connection.execute(select).scalar_one()))
