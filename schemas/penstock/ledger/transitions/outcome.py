"""Outcomes of claimed attempts, written for a batch in one transaction under the fences of their claims."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from penstock.ledger.rows import dead_letters as dead_letter
from penstock.ledger.rows import steps
from penstock.ledger.rows.arrows import fan
from penstock.ledger.rows.ended import announce_ends
from penstock.ledger.rows.jobs import (
    ID_TAKEN,
    IDENTITY,
    Row,
    id_taken,
    is_another,
    message_row,
    resent_embed,
    waiting_row,
)
from penstock.ledger.rows.jobs.terms import record_terms
from penstock.ledger.rows.waits import limit_waits
from penstock.ledger.sql.clock import seconds_from_now
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import attempts, jobs
from penstock.ledger.sql.text import LONGEST_ERROR, LONGEST_NOTE, LONGEST_TRACEBACK, storable, storable_count
from penstock.ledger.sql.types import UtcDateTime
from penstock.ledger.transitions.bury import bury
from penstock.ledger.transitions.claim import Claim
from penstock.ledger.transitions.enqueue import enter
from penstock.schemas.jobs.kind import registry
from penstock.schemas.states import WAITING, Outcome, State
from penstock.schemas.wire.codec import Envelope, body_of, seal
from penstock.schemas.wire.ids import new_id

_OF_MESSAGE = ("kind", "queue", "priority", "delivery", "version", "payload", "embed", "expires_at")
"""Columns that change with the message of a job."""
_ENDS = (State.SUCCEEDED, State.DISCARDED, State.CANCELLED, State.DEAD)
ARROWS = (
    *fan((State.RUNNING,), (*_ENDS, State.RETRYING, State.SCHEDULED, State.QUEUED), "ended its attempt"),
    # Nothing claims an untracked job, so its row may be missing, or be as it was before the sending.
    *fan((None, State.SCHEDULED, State.CANCELLED), (*_ENDS, State.RETRYING, State.SCHEDULED), "untracked, and kept"),
)

log = logging.getLogger("penstock.executor")


@dataclass(slots=True)
class AttemptOutcome:
    """Outcome of a claimed attempt, to be recorded."""

    claim: Claim
    name: Outcome
    state: State
    finished_at: datetime
    error: str | None = None
    traceback: str | None = None
    reason: str | None = None
    """Reason why the job is dead: `failed`, `permanent`, `in_doubt` or `crashed`."""
    detail: str | None = None
    """`error`, and the reason why it is the end."""
    due_at: datetime | None = None
    """If the job goes on: when it is due, by this machine's clock. Its `delay` counts instead, if it has one."""
    delay: timedelta | None = None
    """From the time of the record, by the clock of the database."""
    result: str | None = None
    result_ref: str | None = None
    """Key of the result in the storage; the row then leaves it out."""
    outgoing: list[Envelope] = field(default_factory=list)
    resent: Envelope | None = None
    """If the job goes on as another message: that one, under the same id."""
    progress: tuple[int, int | None, str | None] | None = None
    waits_for: str | None = None
    """Slot of a limit that holds the job back: it has not run, and this does not count as an attempt."""
    begun: bool = True
    """False: it was claimed ahead and goes to another worker; this is no attempt."""
    crashed: bool = False
    """Its own process died: the attempt is on record as crashed, and counts as a crash and not as a failure."""
    exception: BaseException | None = field(default=None, repr=False, compare=False)
    """What the handler raised in this process, for observers: it holds the frames with all their values, and is dropped
    when they have seen it."""
    recorded: bool | None = None
    """If known before the record: whether it was kept (with `ctx.session`), or the fence was lost."""
    asked_at: int = 0
    """When the record was asked for, as `time.time_ns` says it; 0: it was not."""

    @property
    def needs_record(self) -> bool:
        """Whether the outcome must be recorded. A kind with `track=False` keeps only outcomes other than success."""
        return self.claim.tracked or bool(self.outgoing) or self.name not in (Outcome.SUCCEEDED, Outcome.INTERRUPTED)


class FenceLost(Exception):
    """Another worker has claimed the job meanwhile: this attempt changes nothing any more, and ends."""


def record(database: Database, outcomes: Sequence[AttemptOutcome], *, worker: str) -> list[bool]:
    """Write the outcomes of a batch in one transaction. False marks those whose fence was lost: they are not written.

    Raises:
        LedgerUnavailable: nothing was written; try again with the same outcomes.
    """
    try:
        return database.write(lambda connection: write_outcomes(connection, database, outcomes, worker, hopeful=True))
    except FenceLost:
        return database.write(lambda connection: write_outcomes(connection, database, outcomes, worker))


def write_outcomes(
    connection: sa.Connection,
    database: Database,
    outcomes: Sequence[AttemptOutcome],
    worker: str,
    *,
    hopeful: bool = False,
) -> list[bool]:
    """`record` inside a transaction of the caller's.

    Arguments:
        hopeful: assume that every fence is held, and raise FenceLost, for the caller to roll back, if one is not. That
            saves a look first, and losing a fence is rare.
    """
    kept = [True] * len(outcomes) if hopeful else _kept(connection, database, outcomes)
    accepted = [outcome for outcome, keep in zip(outcomes, kept, strict=True) if keep]
    tracked = [outcome for outcome in accepted if outcome.claim.tracked]
    plain = [_succeeded_row(outcome) for outcome in tracked if _is_plain(outcome)]
    rest = [_outcome_row(outcome) for outcome in tracked if not _is_plain(outcome)]
    for statement, rows in ((_SUCCEEDED, plain), (_ENDED, rest)):
        if rows and database.execute_many(connection, statement, rows) != len(rows):
            raise FenceLost
    if resent := [_resent_row(outcome) for outcome in tracked if outcome.resent is not None]:
        database.execute_many(connection, _RESENT, resent)
    if new := [
        _untracked_row(outcome, worker) for outcome in accepted if not outcome.claim.tracked and outcome.needs_record
    ]:
        # A second delivery of one sending may end when the retry of the first is on its way or done: its row stays.
        ids = [row["id"] for row in new]
        on_record = {row.id: row for row in database.rows_of(connection, _UNTRACKED, jobs.c.id, ids)}
        fences = {row.id: row.fence for row in on_record.values()}
        if others := [row for row in new if row["id"] in on_record and _has_id_of_another(row, on_record[row["id"]])]:
            new = [row for row in new if row not in others]
            failed = [row for row in others if row["state"] != State.SUCCEEDED]
            buried = {row["id"] for row in failed}
            accepted = [item for item in accepted if item.claim.tracked or item.claim.message.id not in buried]
            bury(connection, database, [_other_dead_letter(row) for row in failed])
        if fresh := [row for row in new if fences.get(row["id"], 0) < row["fence"]]:
            connection.execute(database.upsert(jobs, keep=("enqueued_at",)), fresh)
            record_terms(connection, database, fresh)
            written = {row["id"] for row in fresh}
            late = [
                _delay_row(outcome)
                for outcome in accepted
                if outcome.delay is not None and outcome.claim.message.id in written
            ]
            if late:
                database.execute_many(connection, _DELAYED, late)
    limit_waits.enter(
        connection, database, [_wait_row(outcome) for outcome in accepted if outcome.waits_for is not None]
    )
    if rows := [_attempt_row(outcome, worker) for outcome in accepted if _has_attempt_row(outcome)]:
        database.execute_many(connection, database.insert_ignore(attempts), rows)
    bury(connection, database, [_dead_letter(outcome) for outcome in accepted if outcome.state == State.DEAD])
    # Only a step's job has a mark in its embed. One that seems to go on has ended, too, if it was asked to cancel.
    marked = [outcome.claim.message for outcome in accepted if outcome.claim.message.embed is not None]
    if of_steps := [message.id for message in marked if message.embed and steps.MARK in message.embed]:
        announce_ends(connection, database, of_steps, workflows=False)
    if outgoing := [envelope for outcome in accepted for envelope in outcome.outgoing]:
        # Last, so that a job that has just ended here does not hold the key of the next one.
        for envelope, answer in zip(outgoing, enter(connection, database, outgoing, datetime.now(UTC)), strict=True):
            if not answer.created:
                log.info("job %s is not sent: job %s stands for its key", envelope.id, answer.job_id)
    return kept


def _kept(connection: sa.Connection, database: Database, outcomes: Sequence[AttemptOutcome]) -> list[bool]:
    tracked = [outcome.claim.message.id for outcome in outcomes if outcome.claim.tracked]
    rows = database.rows_of(connection, _RUNNING, jobs.c.id, tracked)
    fences = {row.id: row.fence for row in rows}
    return [
        not outcome.claim.tracked or fences.get(outcome.claim.message.id) == outcome.claim.fence for outcome in outcomes
    ]


_FENCES = sa.select(jobs.c.id, jobs.c.fence)
_UNTRACKED = sa.select(jobs.c.id, jobs.c.fence, *IDENTITY)
_RUNNING = _FENCES.where(jobs.c.state == State.RUNNING)
_CLAIMED = sa.and_(
    jobs.c.id == sa.bindparam("b_id"), jobs.c.fence == sa.bindparam("b_fence"), jobs.c.state == State.RUNNING
)

_SUCCEEDED = (
    sa.update(jobs)
    .where(_CLAIMED)
    .values(
        state=State.SUCCEEDED,
        started_at=sa.bindparam("b_started_at"),
        finished_at=sa.bindparam("b_finished_at"),
        result=sa.bindparam("b_result"),
        error=None,
        cancel_requested=False,
    )
)


def _or_as_it_was(name: str, column: sa.Column[Any]) -> sa.Function[Any]:
    return sa.func.coalesce(sa.bindparam(name, type_=column.type), column)


_ENDS_AS = sa.bindparam("b_state", type_=jobs.c.state.type)
_GOES_ON = sa.or_(*map(_ENDS_AS.__eq__, sorted({*WAITING, State.QUEUED})))

_ENDED = (
    sa.update(jobs)
    .where(_CLAIMED)
    .values(
        # A request to cancel means all attempts of the job. MySQL sets columns in the table's order: this one before
        # the flag that it reads.
        state=sa.case((sa.and_(jobs.c.cancel_requested, _GOES_ON), State.CANCELLED), else_=_ENDS_AS),
        attempt=sa.bindparam("b_attempt"),
        failures=sa.bindparam("b_failures"),
        crashes=sa.bindparam("b_crashes"),
        started_at=sa.bindparam("b_started_at"),
        finished_at=sa.bindparam("b_finished_at"),
        due_at=sa.func.coalesce(seconds_from_now("b_delay"), sa.bindparam("b_due_at", type_=UtcDateTime())),
        result=sa.bindparam("b_result"),
        result_ref=sa.bindparam("b_result_ref"),
        error=sa.bindparam("b_error"),
        cancel_requested=False,
        progress_done=_or_as_it_was("b_done", jobs.c.progress_done),
        progress_total=_or_as_it_was("b_total", jobs.c.progress_total),
        progress_note=_or_as_it_was("b_note", jobs.c.progress_note),
    )
)


_RESENT = (
    sa.update(jobs)
    .where(jobs.c.id == sa.bindparam("b_id"))
    .values({name: sa.bindparam(f"b_{name}") for name in _OF_MESSAGE})
)

_DELAYED = sa.update(jobs).where(jobs.c.id == sa.bindparam("b_id")).values(due_at=seconds_from_now("b_delay"))


def _has_attempt_row(outcome: AttemptOutcome) -> bool:
    return outcome.name != Outcome.SUCCEEDED and outcome.waits_for is None and outcome.begun


def _is_plain(outcome: AttemptOutcome) -> bool:
    """Whether the outcome is a plain success, as almost every one is. Its row changes in few columns."""
    return outcome.name == Outcome.SUCCEEDED and outcome.progress is None and outcome.result_ref is None


def _succeeded_row(outcome: AttemptOutcome) -> Row:
    claim = outcome.claim
    return {
        "b_id": claim.message.id,
        "b_fence": claim.fence,
        "b_started_at": claim.started_at,
        "b_finished_at": outcome.finished_at,
        "b_result": outcome.result,
    }


def _failures_after(outcome: AttemptOutcome) -> int:
    failed = outcome.name == Outcome.RETRY or (
        outcome.name == Outcome.DEAD and not outcome.claim.quarantine and not outcome.crashed
    )
    return outcome.claim.failures + int(failed)


def _crashes_after(outcome: AttemptOutcome) -> int:
    return outcome.claim.crashes + int(outcome.crashed)


def _outcome_row(outcome: AttemptOutcome) -> Row:
    claim = outcome.claim
    done, total, note = outcome.progress or (None, None, None)
    unfinished = outcome.name in (Outcome.INTERRUPTED, Outcome.SNOOZED)
    return {
        "b_id": claim.message.id,
        "b_fence": claim.fence,
        "b_state": outcome.state,
        "b_attempt": claim.attempt - 1 if unfinished else claim.attempt,
        "b_failures": _failures_after(outcome),
        "b_crashes": _crashes_after(outcome),
        "b_started_at": claim.started_at,
        "b_finished_at": outcome.finished_at,
        "b_due_at": outcome.finished_at if outcome.state == State.QUEUED else outcome.due_at,  # as when it was sent
        "b_delay": None if outcome.delay is None else outcome.delay.total_seconds(),
        "b_result": outcome.result if outcome.result_ref is None else None,
        "b_result_ref": outcome.result_ref,
        "b_error": storable(outcome.error, LONGEST_ERROR),
        "b_done": storable_count(done),
        "b_total": storable_count(total),
        "b_note": storable(note, LONGEST_NOTE),
    }


def _delay_row(outcome: AttemptOutcome) -> Row:
    assert outcome.delay is not None
    return {"b_id": outcome.claim.message.id, "b_delay": outcome.delay.total_seconds()}


def _resent_columns(outcome: AttemptOutcome) -> Row:
    assert outcome.resent is not None
    row = waiting_row(outcome.resent)
    embed = json.dumps(resent_embed(outcome.claim.message, outcome.claim.fence))
    return {name: row[name] for name in _OF_MESSAGE} | {"embed": embed}


def _resent_row(outcome: AttemptOutcome) -> Row:
    columns = {f"b_{name}": value for name, value in _resent_columns(outcome).items()}
    return {"b_id": outcome.claim.message.id, **columns}


def _untracked_row(outcome: AttemptOutcome, worker: str) -> Row:
    claim = outcome.claim
    row = message_row(claim.message, claim.started_at)
    if outcome.resent is not None:
        row |= _resent_columns(outcome)
    row.update(
        state=outcome.state,
        worker=worker,
        fence=claim.fence + 1,
        attempt=claim.attempt,
        failures=_failures_after(outcome),
        crashes=_crashes_after(outcome),
        finished_at=outcome.finished_at,
        due_at=outcome.due_at,
        error=storable(outcome.error, LONGEST_ERROR),
    )
    return row


def _has_id_of_another(row: Row, on_record: Any) -> bool:
    return is_another(on_record, row["kind"], registry.find(row["kind"]), row["tenant"], row["queue"])


def _other_dead_letter(row: Row) -> Row:
    """Dead letter of an untracked job that did not succeed, and whose id another job has, which stays as it is."""
    detail = f"{row['error'] or row['state']}; {id_taken(row['id'])}"
    sent = seal(row["kind"], row["version"], body_of(row["payload"].encode()), row["id"], row["queue"], row["priority"])
    return dead_letter.unread(
        new_id(), sent.headers, row["queue"], sent.body, reason=ID_TAKEN, detail=detail, created_at=datetime.now(UTC)
    )


def _attempt_row(outcome: AttemptOutcome, worker: str) -> Row:
    claim = outcome.claim
    return {
        "job_id": claim.message.id,
        "fence": claim.fence,
        "number": claim.attempt,
        "worker": worker,
        "started_at": claim.started_at,
        "finished_at": outcome.finished_at,
        "outcome": Outcome.CRASHED if outcome.crashed else outcome.name,
        "error": storable(outcome.error, LONGEST_ERROR),
        "traceback": storable(outcome.traceback, LONGEST_TRACEBACK, end=True),
    }


def _wait_row(outcome: AttemptOutcome) -> Row:
    message = outcome.claim.message
    return {
        "job_id": message.id,
        "slot": outcome.waits_for,
        "enqueued_at": message.sent_at or outcome.claim.started_at,
        "due_at": outcome.due_at,
    }


def _dead_letter(outcome: AttemptOutcome) -> Row:
    message = outcome.claim.message
    return dead_letter.of_job(
        message.id,
        message.kind.name,
        message.queue,
        reason=outcome.reason or "failed",
        detail=outcome.detail or outcome.error or "",
        error=outcome.error or outcome.detail or "",
        traceback=outcome.traceback,
        created_at=outcome.finished_at,
    )
