"""Moving workflows on: what has happened to their steps is read, what follows is decided and written, in one
transaction for a batch of workflows.

Whoever moves a workflow holds the lock of its row, so each end of a job is counted once and each step begins once,
however many dispatchers there are and wherever one of them dies. What tells that there is something to do, a due time
in the step's row, was written in the transaction of the outcome.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from penstock.config.errors import PenstockError, UndecodableMessage
from penstock.ledger.queries.results import StoredResult
from penstock.ledger.rows import steps as notes
from penstock.ledger.rows.dead_letters import fingerprint
from penstock.ledger.rows.jobs import RESERVED
from penstock.ledger.sql.clock import from_now
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import dead_letters, jobs, steps, workflows
from penstock.ledger.transitions.enqueue import enter
from penstock.ledger.transitions.revive import revive_all
from penstock.ledger.workflows import cancel
from penstock.ledger.workflows.rows import PARKED, fresh_row
from penstock.producers.storage import Storage
from penstock.schemas.jobs.kind import registry
from penstock.schemas.states import FINAL, WAITING, State
from penstock.schemas.wire.codec import Envelope, encode
from penstock.schemas.workflows import StepState, WorkflowState
from penstock.workers.workflows.definition import Definition, definitions, difference
from penstock.workers.workflows.run import ENDED_AS, LOOK_AGAIN, Ended, Row, Run
from penstock.workers.workflows.statements import (
    DUE,
    ENDED,
    HEADS,
    OWN,
    RESULT,
    WORKFLOWS,
    WRITE,
    WRITE_DUE,
    WRITE_MEMBER,
    WRITE_OWN,
    WRITE_WORKFLOW,
    head_row,
    step_key,
    workflow_row,
)

BATCH = 2000
"""Rows of steps that are looked at in one transaction."""
_MOST_RESERVED = 20_000
"""While the caller sends more than these, other workflows would have to wait."""
_SOON = timedelta(milliseconds=200)
_BORROWED = timedelta(seconds=2)
"""How often a job is looked at that stands for a step's own, unique one: nobody tells of its end."""
_UNKNOWN = timedelta(seconds=10)


@dataclass(frozen=True, slots=True)
class Mover:
    """What it takes to move workflows.

    Arguments:
        open_storage: where results lie that are not in the ledger.
        max_bytes: of a job's body.
    """

    database: Database
    open_storage: Callable[[], Storage]
    max_bytes: int

    def due(self) -> tuple[list[str], bool]:
        """Workflows with something to look at, and whether that may not be all."""
        select = sa.select(steps.c.workflow_id).where(steps.c.due_at <= from_now()).order_by(steps.c.due_at)
        found = self.database.read(lambda connection: connection.scalars(select.limit(BATCH)).all())
        return sorted(set(found)), len(found) == BATCH

    def advance(self, ids: Sequence[str], *, reserve: bool = False) -> Moved:
        """Move these on; those that another dispatcher has at the moment are left to it.

        Arguments:
            reserve: the new jobs for the caller, who sends them, instead of letting them be due at once.

        Raises:
            LedgerUnavailable: nothing was written; and whatever the database does not take of one of them.
        """
        return self.database.write(lambda connection: _Batch(self, connection, reserve).advance(ids))


@dataclass(frozen=True, slots=True)
class Moved:
    """What came of it.

    Attributes:
        ended: ids of workflows that have.
        sending: jobs that are reserved, `until` then.
        due: whether there are new jobs that are not.
    """

    ended: list[str]
    sending: list[Envelope]
    until: datetime
    due: bool


class _Batch:
    """One transaction."""

    def __init__(self, mover: Mover, connection: sa.Connection, reserve: bool) -> None:
        self._mover, self._database, self._connection = mover, mover.database, connection
        self._reserve = reserve
        self._members: list[dict[str, Any]] = []
        self._again: list[dict[str, Any]] = []
        self._new: list[dict[str, Any]] = []
        self._outgoing: list[tuple[Run, str, int, Envelope]] = []
        self._owns: dict[str, Any] = {}

    def advance(self, ids: Sequence[str]) -> Moved:
        self._now = self._connection.execute(sa.select(from_now())).scalar_one()
        runs = self._read(ids)
        self._take_in(runs)
        active = list(runs.values())
        while active:
            self._begin(active)
            for run in active:
                run.conclude()
            # A step that was skipped, or compensated at once, may let another begin.
            active = [run for run in active if run.ready() or run.next_undo()]
        self._write(list(runs.values()))
        made = [envelope for *_, envelope in self._outgoing]
        sending = [one for one in made if self._reserve and registry[one.kind].unique is None]
        ended = [run.id for run in runs.values() if run.finished]
        return Moved(ended, sending, self._until, len(sending) < len(made))

    # Reading.

    def _read(self, ids: Sequence[str]) -> dict[str, Run]:
        mine = self._database.among(workflows.c.id, ids)
        select = self._database.locked(WORKFLOWS.where(mine).order_by(workflows.c.id), skip=True)
        rows = {row.id: row for row in self._connection.execute(select).all()}
        if not rows:
            return {}
        self._owns = {row.id: row for row in self._connection.execute(self._of(OWN, jobs.c.id, list(rows))).all()}
        heads: dict[str, dict[str, Row]] = defaultdict(dict)
        of_step = self._of(HEADS, steps.c.workflow_id, list(rows)).where(steps.c.number == 0)
        for workflow_id, step, *values in self._connection.execute(of_step).all():
            heads[workflow_id][step] = Row(step, *values)
        runs = {}
        for id, row in rows.items():
            definition = definitions.get(row.kind)
            if definition is None or definition.hash != row.definition:
                self._rest(row, definition)
            elif (run := self._run(row, definition, heads[id])) is not None:
                runs[id] = run
        return runs

    def _of(self, select: sa.Select[Any], column: sa.Column[str], ids: Sequence[str]) -> sa.Select[Any]:
        return select.where(self._database.among(column, ids))

    def _run(self, row: Any, definition: Definition, rows: dict[str, Row]) -> Run | None:
        own = self._owns.get(row.id)
        if own is None:
            self._abandon(row.id, "its own job is not recorded any more")
            return None
        try:
            kind = registry[row.kind]
            payload = json.dumps(registry.upcast(kind, json.loads(own.payload), own.version))
            input = kind.job.model_validate_json(payload)
        except (ValueError, UndecodableMessage) as error:
            self._abandon(row.id, f"its input cannot be read: {error}")
            return None
        run = Run(row.id, definition, input, State(own.state), WorkflowState(row.state), self._now, rows)
        run.ends_as, run.undo = row.ends_as and WorkflowState(row.ends_as), row.undo
        # Of one that goes on as it should, what is there says only why it has rested.
        run.error, run.changed = (row.error, False) if run.ends_as is not None else (None, row.error is not None)
        return run

    def _rest(self, row: Any, definition: Definition | None) -> None:
        """Leave a workflow alone that began with another definition, and look at it again later: a dispatcher that has
        that one may be up. To cancel it, no definition is needed."""
        if row.state == WorkflowState.CANCELLING and cancel.finish(self._connection, self._database, row.id, row.undo):
            return
        mine = sa.and_(steps.c.workflow_id == row.id, steps.c.due_at <= self._now)
        self._connection.execute(sa.update(steps).where(mine).values(due_at=from_now(_UNKNOWN)))
        if definition is not None and not WorkflowState(row.state).final:
            graph = sa.select(workflows.c.graph).where(workflows.c.id == row.id)
            before = self._connection.execute(graph).scalar_one()
            error = (
                f"rests: {row.kind} was changed since it began ({difference(before, definition.graph)}); run a "
                "dispatcher with the code it began with; or cancel it with --no-compensate, then retry it with --all"
            )
            self._connection.execute(sa.update(workflows).where(workflows.c.id == row.id).values(error=error[:2000]))

    def _abandon(self, id: str, error: str) -> None:
        """End a workflow that cannot be read: nothing of it will begin any more."""
        change = {"state": WorkflowState.FAILED, "finished_at": datetime.now(UTC), "error": error[:2000]}
        self._connection.execute(sa.update(workflows).where(workflows.c.id == id).values(**change))
        self._connection.execute(sa.update(steps).where(steps.c.workflow_id == id).values(due_at=None))

    # What has happened.

    def _take_in(self, runs: dict[str, Run]) -> None:
        if not runs:
            return
        due = [row for row in self._due_rows() if row.workflow_id in runs]
        for run in runs.values():
            if (
                not run.state.final
                and run.state != WorkflowState.CANCELLING
                and run.own in FINAL
                and run.ends_as is None
            ):
                self._cancel(run)
        ids = [row.job_id for row in due if row.job_id is not None]
        found = {}
        if ids:
            found = {row.id: row for row in self._connection.execute(self._of(ENDED, jobs.c.id, ids)).all()}
        for row in due:
            run = runs[row.workflow_id]
            if row.job_id is None:
                run.time_is_up(row.step)
                continue
            job = found.get(row.job_id)
            if job is not None and job.state not in FINAL:
                self._look_again(row, LOOK_AGAIN if job.embed is not None else _BORROWED)
                continue
            state = State.DEAD if job is None else State(job.state)
            error = "its job is not recorded any more" if job is None else job.error
            run.job_ended(row.step, Ended(row.number, StepState(row.state), state, error))
            if row.number:
                finished_at = self._now if job is None else job.finished_at
                change = {"b_state": ENDED_AS[state], "b_finished_at": finished_at}
                self._members.append(step_key(row) | change | {"b_seen": row.due_at, "b_due_at": None})
            else:
                head = run.rows[row.step]
                head.due_at, head.changed = None, True

    def _due_rows(self) -> Iterator[Any]:
        # After the locks: what another dispatcher has taken in meanwhile is not due any more.
        select = DUE.where(steps.c.due_at <= self._now).order_by(steps.c.due_at).limit(BATCH)
        yield from self._connection.execute(select).all()

    def _look_again(self, row: Any, after: timedelta) -> None:
        self._again.append({**step_key(row), "b_seen": row.due_at, "b_due_at": self._now + after})

    def _cancel(self, run: Run) -> None:
        """Its own job was cancelled, or has died: its steps stop too."""
        cancel.cancel(self._connection, self._database, [run.id], undo=run.undo)
        run.state, run.ends_as, run.changed = WorkflowState.CANCELLING, WorkflowState.CANCELLED, True

    # What follows.

    def _begin(self, runs: Sequence[Run]) -> None:
        wanted = [(run, step) for run in runs for step in run.ready()]
        wanted += [(run, step) for run in runs if (step := run.next_undo()) is not None]
        results = self._results([(run, taken.step) for run, step in wanted for taken in step.takes.values()])
        for run, step in wanted:
            run.begin(step, {one.step: results[run.id, one.step] for one in step.takes.values()})
            self._seal(run, step.name)

    def _seal(self, run: Run, step: str) -> None:
        """Make envelopes of what the step has just made."""
        own = self._owns[run.id]
        mark = json.dumps({notes.MARK: run.id}).encode()
        sealed = []
        try:
            for number, job in run.made:
                expires_in = job.kind().expires_in
                envelope = encode(
                    job,
                    tenant=own.tenant,
                    traceparent=own.traceparent,
                    expires_at=None if expires_in is None else self._now + expires_in,
                    max_bytes=self._mover.max_bytes,
                    embed=mark,
                )
                sealed.append((run, step, number, envelope))
        except PenstockError as error:
            run.refuse(step, error)
        else:
            self._outgoing += sealed
        run.made = []

    def _results(self, wanted: Iterable[tuple[Run, str]]) -> dict[tuple[str, str], str | None]:
        """The results of these steps, as JSON; a fan-out's as a list, in the order of its jobs."""
        found: dict[tuple[str, str], str | None] = {}
        single: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for run, step in wanted:
            key, row = (run.id, step), run.rows[step]
            if key in found:
                continue
            found[key] = None
            if row.result is not None:
                given = json.loads(row.result)
                found[key] = json.dumps(given["answer"] if "answer" in given else given["otherwise"])
            elif row.members is not None:
                found[key] = self._results_of_members(run.id, step)
            elif row.job_id is not None and row.state == StepState.SUCCEEDED:
                single[row.job_id].append(key)
        if single:
            for job in self._connection.execute(self._of(RESULT, jobs.c.id, list(single))).all():
                for key in single[job.id]:
                    found[key] = self._text(job)
        return found

    def _results_of_members(self, workflow_id: str, step: str) -> str:
        mine = (steps.c.workflow_id == workflow_id, steps.c.number > 0, steps.c.step == step)
        joined = RESULT.select_from(steps.join(jobs, jobs.c.id == steps.c.job_id)).order_by(steps.c.number)
        done = self._connection.execute(joined.where(*mine, jobs.c.state == State.SUCCEEDED)).all()
        return "[" + ",".join(self._text(job) for job in done) + "]"

    def _text(self, job: Any) -> str:
        if job.result_ref is not None:
            return json.dumps(StoredResult(job.result_ref, self._mover.open_storage).value())
        return "null" if job.result is None else str(job.result)

    # Writing.

    def _write(self, runs: Sequence[Run]) -> None:
        self._send()
        self._finish([run for run in runs if run.finished])
        for run in runs:
            if run.reopened and not run.finished:
                revive_all(self._connection, self._database, [run.id], after=PARKED)
        rows = [head_row(run, row) for run in runs for row in run.rows.values() if row.changed]
        for statement, changes in ((WRITE, rows), (WRITE_MEMBER, self._members), (WRITE_DUE, self._again)):
            if changes:
                changes.sort(key=lambda row: (row["b_workflow_id"], row["b_number"], row["b_step"]))
                self._database.execute_many(self._connection, statement, changes)
        if self._new:
            self._database.execute_many(self._connection, self._database.insert(steps), self._new)
        changes = [workflow_row(run) for run in runs if run.changed]
        if changes:
            self._database.execute_many(self._connection, WRITE_WORKFLOW, changes)

    def _send(self) -> None:
        """Enter the jobs, for the dispatcher to send: with the rows of their steps, or not at all."""
        if not self._outgoing:
            return
        envelopes = [envelope for *_, envelope in self._outgoing]
        self._reserve = self._reserve and len(envelopes) <= _MOST_RESERVED
        until = self._until if self._reserve else None
        answers = enter(self._connection, self._database, envelopes, datetime.now(UTC), until)
        for (run, name, number, _), answer in zip(self._outgoing, answers, strict=True):
            due_at = self._now + (LOOK_AGAIN if answer.created else _BORROWED)
            if number == 0:
                run.rows[name].job_id, run.rows[name].due_at = answer.job_id, due_at
            else:
                sent = {"state": StepState.RUNNING, "job_id": answer.job_id, "due_at": due_at}
                self._new.append(fresh_row(run.id, name, number) | sent)

    @property
    def _until(self) -> datetime:
        """When the new jobs' reservation ends: writing them takes its time, too."""
        return self._now + RESERVED + timedelta(milliseconds=len(self._outgoing))

    def _finish(self, runs: Sequence[Run]) -> None:
        """End the workflows' own jobs with them. One that has not come to rest yet, since its start is just being
        recorded, is waited for."""
        for run in runs:
            if run.own not in FINAL and run.own not in WAITING:
                run.finished = run.changed = False
                first = next(iter(run.rows.values()))
                first.due_at, first.changed = self._now + _SOON, True
        outcome = [run for run in runs if run.finished and run.own in WAITING]
        succeeded = [run for run in outcome if run.state == WorkflowState.SUCCEEDED]
        if succeeded:
            now, results = datetime.now(UTC), self._results_of(succeeded)
            changes = [{"b_id": run.id, "b_finished_at": now} | results.get(run.id, _NO_RESULT) for run in succeeded]
            self._database.execute_many(self._connection, WRITE_OWN, changes)
        for run in outcome:
            if run.state != WorkflowState.SUCCEEDED:
                self._end_own_job(run)
        # Steps of other workflows.
        notes.ended(
            self._connection, self._database, [one.id for one in outcome if self._owns[one.id].embed is not None]
        )

    def _end_own_job(self, run: Run) -> None:
        """Of a workflow that has not succeeded."""
        now = datetime.now(UTC)
        change: dict[str, Any] = {"finished_at": now, "due_at": None, "error": None, "state": State.CANCELLED}
        if run.state != WorkflowState.CANCELLED:
            change |= {"state": State.DEAD, "error": run.error}
            letter = _letter(run, self._owns[run.id].queue, now)
            self._connection.execute(self._database.upsert(dead_letters), [letter])
        self._connection.execute(sa.update(jobs).where(jobs.c.id == run.id).values(**change))

    def _results_of(self, runs: Sequence[Run]) -> dict[str, dict[str, str | None]]:
        """The results of workflows that have succeeded: those of their last steps, by the ids of the workflows."""
        found: dict[str, dict[str, str | None]] = {}
        taken: dict[str, str] = {}
        for run in runs:
            row = None if (last := run.definition.last) is None else run.rows[last.name]
            if row is None or row.state != StepState.SUCCEEDED:
                continue
            if row.members is None and row.job_id is not None:
                taken[run.id] = row.job_id
            else:
                result = self._results([(run, row.step)])[run.id, row.step]
                found[run.id] = {"b_result": result, "b_result_ref": None}
        if taken:
            select = self._of(RESULT, jobs.c.id, list(taken.values()))
            done = {job.id: job for job in self._connection.execute(select).all()}
            for id, job_id in taken.items():
                if (job := done.get(job_id)) is not None:
                    found[id] = {"b_result": job.result, "b_result_ref": job.result_ref}
        return found


_NO_RESULT: dict[str, str | None] = {"b_result": None, "b_result_ref": None}


def _letter(run: Run, queue: str, now: datetime) -> dict[str, Any]:
    kind, error = run.definition.kind, run.error or ""
    return {
        "id": run.id,
        "kind": kind,
        "queue": queue,
        "reason": "failed",
        "detail": error,
        "fingerprint": fingerprint(kind, error),
        "headers": None,
        "raw": None,
        "created_at": now,
        "replayed_at": None,
        "discarded_at": None,
    }
