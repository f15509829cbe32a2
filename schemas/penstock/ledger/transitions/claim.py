"""Claiming: a worker gets the right to run jobs, a batch in one transaction. `outcome` ends that right.

A claim raises the job's fence. An outcome carries the fence of its claim, so a worker that lost its claim, because it
was suspended for longer than its lease, writes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from penstock.ledger.members.leases import excuse_outage
from penstock.ledger.rows import suspect_runs
from penstock.ledger.rows.arrows import Arrow, fan
from penstock.ledger.rows.attempts import CrashReports, crashed_attempt
from penstock.ledger.rows.ended import announce_ends, count_rows, final_columns
from penstock.ledger.rows.jobs import ID_TAKEN, IDENTITY, Row, is_another, is_elsewhere, is_superseded, message_row
from penstock.ledger.rows.jobs.later_messages import GOES_ON, go_on, may_follow
from penstock.ledger.rows.jobs.terms import record_terms
from penstock.ledger.sql.clock import from_now
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import attempts, jobs, workers
from penstock.ledger.transitions.cancel import cancel_unseen
from penstock.schemas.states import FINAL, WAITING, Outcome, State
from penstock.schemas.wire.codec import Message

ARROWS = (
    *fan((None, State.SCHEDULED, State.QUEUED, State.RETRYING), (State.RUNNING,), "claimed"),
    Arrow(State.RUNNING, State.RUNNING, "claimed after a crash"),
    *fan(GOES_ON, (State.RUNNING,), "claimed: a later message of an adopted task"),
    Arrow(State.RUNNING, State.CANCELLED, "was to be cancelled when its worker died"),
)

_REPLACING = timedelta(seconds=0.5)
"""Before a message is looked at again whose job seems to run: it may be about to end as replaced."""
_READ = sa.select(
    *(jobs.c[name] for name in ("id", "state", "fence", "worker", "attempt", "failures", "crashes")),
    *(jobs.c[name] for name in ("cancel_requested", "started_at", "enqueued_at")),
    *IDENTITY,
)


@dataclass(slots=True)
class ClaimRequest:
    """A message whose job a worker wants to claim.

    Attributes:
        redelivered: the broker has handed it out before, so the worker that had it may be dead.
        ahead: it will run when a slot is free, so its row says no start until `heartbeats.report` or its outcome does.
    """

    message: Message
    redelivered: bool
    max_crashes: int
    ahead: bool = False


@dataclass(slots=True)
class Claim:
    """The right to run a job once.

    Attributes:
        fence: names this claim; 0 for a job that is not tracked.
        attempt: the number of the attempt, which failures so far make.
        failures, crashes: before this attempt.
        quarantine: it crashed its worker too often: record it as dead instead of running it.
        crash: what is known of the crash that ended the attempt before.
        unseen: the ledger had not known the job.
        ahead: the row says no start: see `ClaimRequest`.
        asked_at: when it was asked for, as `time.time_ns` says it; 0: it was not.
    """

    message: Message
    fence: int
    attempt: int
    failures: int
    crashes: int
    started_at: datetime
    tracked: bool = True
    quarantine: bool = False
    crash: str | None = None
    unseen: bool = False
    ahead: bool = False
    asked_at: int = 0


@dataclass(slots=True)
class Refusal:
    """Refused claim: acknowledge the message, unless it is `held` or `id_taken`.

    Attributes:
        reason: `ended`, `duplicate`, `cancelled`; `held`, which means that another live worker may still run it; or
            `id_taken`: the message has the id of another job, so bury it.
        until: of a held one: when that worker's lease ends, on this machine's clock.
    """

    message: Message
    reason: str
    until: datetime | None = None


def claim(
    database: Database,
    requests: Sequence[ClaimRequest],
    *,
    worker: str,
    now: datetime | None = None,
    asked_before: bool = False,
    lease: timedelta = timedelta(),
    apart: bool = False,
) -> list[Claim | Refusal]:
    """Claim a batch for a worker. The answers are in the order of the requests.

    One statement claims the jobs that are new to the ledger, as almost all are; a transaction looks at the others.

    Arguments:
        asked_before: the worker asked, and got no answer. A job that it seems to run was claimed by that request.
        lease: see `excuse_outage`.
        apart: those that have crashed will run in processes of their own, so the worker's death does not count against
            them from now on.

    Raises:
        LedgerUnavailable: ask again. If the connection was lost at the commit, the claim may be done.
    """
    now = now or datetime.now(UTC)
    at_once = {} if asked_before else _claim_unrecorded(database, requests, worker, now)
    others = [number for number in range(len(requests)) if number not in at_once]

    def claim_all(connection: sa.Connection) -> list[Claim | Refusal]:
        of_others = [requests[number] for number in others]
        claimed_ids = {claim.message.id for claim in at_once.values()}
        answers = _claim(connection, database, of_others, worker, now, asked_before, lease, claimed_ids)
        claims = [answer for answer in answers if isinstance(answer, Claim)]
        suspects = {claim.message.id: claim.fence for claim in claims if claim.crashes and not claim.quarantine}
        if apart and suspects:
            suspect_runs.begin(connection, database, suspects)
        return answers

    if not others:
        return list(at_once.values())
    answers = dict(zip(others, database.write(claim_all), strict=True)) | at_once
    return [answers[number] for number in range(len(requests))]


def asks_of_keys(answers: Sequence[Claim | Refusal]) -> bool:
    """Whether `without_cancelled` has anything to look for."""
    return any(isinstance(answer, Claim) and answer.unseen and answer.message.key is not None for answer in answers)


def without_cancelled(database: Database, answers: Sequence[Claim | Refusal]) -> list[Claim | Refusal]:
    """The answers of `claim`, with refusals for jobs whose key was cancelled before the ledger saw them.

    Call it after the claims are committed: then either a cancellation meanwhile finds the running job, or this finds
    the cancellation.

    Raises:
        LedgerUnavailable: ask again with the same answers.
    """
    unseen = [answer.message for answer in answers if isinstance(answer, Claim) and answer.unseen]
    keyed = [(sent.id, sent.kind.name, sent.key, sent.tenant, sent.sent_at) for sent in unseen if sent.key is not None]
    cancelled = cancel_unseen(database, keyed, claimed=True)
    return [Refusal(answer.message, "cancelled") if answer.message.id in cancelled else answer for answer in answers]


def _claim_unrecorded(
    database: Database, requests: Sequence[ClaimRequest], worker: str, now: datetime
) -> dict[int, Claim | Refusal]:
    """Claims of jobs that the ledger has not known, by the number of the request; the others must be looked at.

    Only of messages whose jobs are most likely not on record.
    """
    numbers: dict[str, int] = {}
    for number, request in enumerate(requests):
        message = request.message
        if not (request.redelivered or message.fence or message.tags or message.kind.search):
            numbers.setdefault(message.id, number)
    if not numbers:
        return {}
    claims = {number: _first_claim(requests[number], now) for number in numbers.values()}
    ids = database.insert_new(jobs, jobs.c.id, [_new_row(claim, worker) for claim in claims.values()])
    return {number: claim for number, claim in claims.items() if claim.message.id in ids}


def _first_claim(request: ClaimRequest, now: datetime) -> Claim:
    """Claim of a job that is not on record."""
    message = request.message
    return Claim(message, 1, message.attempt, message.attempt - 1, 0, now, unseen=True, ahead=request.ahead)


def _claim(
    connection: sa.Connection,
    database: Database,
    requests: Sequence[ClaimRequest],
    worker: str,
    now: datetime,
    asked_before: bool,
    lease: timedelta,
    claimed_ids: set[str],
) -> list[Claim | Refusal]:
    ids = list({request.message.id for request in requests})
    rows: dict[str, Any] = {row.id: row for row in database.rows_of(connection, _READ, jobs.c.id, ids)}
    holders = {row.worker for row in rows.values() if row.state == State.RUNNING and row.worker != worker}
    leases: dict[str, datetime] = {}
    if holders:
        excuse_outage(connection, database, lease)
        leases = _leases(connection, holders, now)
    answers: list[Claim | Refusal] = []
    inserts: list[Row] = []
    updates: list[Row] = []
    again: list[Claim] = []
    later: list[Message] = []
    crashed: list[Row] = []
    crash_reports = CrashReports(connection)
    for request in requests:
        message = request.message
        row = rows.get(message.id)
        if message.id in claimed_ids:
            answers.append(Refusal(message, "duplicate"))
            continue
        if row is None:
            claimed_ids.add(message.id)
            granted = _first_claim(request, now)
            inserts.append(_new_row(granted, worker))
            answers.append(granted)
            continue
        unanswered = asked_before and row.state == State.RUNNING and row.worker == worker
        if may_follow(message, row):
            if row.state == State.RUNNING and not request.redelivered:
                answers.append(Refusal(message, "held", until=now + _REPLACING))
                continue
            if row.state in GOES_ON:
                claimed_ids.add(message.id)
                granted = Claim(message, row.fence + 1, row.failures + 1, row.failures, row.crashes, now)
                granted.ahead = request.ahead
                updates.append(_claimed_row(granted, worker))
                later.append(granted.message)
                answers.append(granted)
                continue
        if is_another(row, message.kind.name, message.kind, message.tenant, message.queue):
            answers.append(Refusal(message, ID_TAKEN))
            continue
        if is_superseded(row, message.fence):
            answers.append(Refusal(message, "duplicate"))
            continue
        if not unanswered and (refusal := _refuse(request, row, leases, worker, now)):
            answers.append(refusal)
            continue
        if is_elsewhere(row, message.queue):
            answers.append(Refusal(message, ID_TAKEN))
            continue
        claimed_ids.add(message.id)
        if row.cancel_requested:
            # Its worker died before it was notified. The job must not start again.
            _end_cancelled(connection, database, row, now, crash_reports)
            answers.append(Refusal(message, "cancelled"))
            continue
        crashes = row.crashes
        if row.state == State.RUNNING and not unanswered:
            counts = not suspect_runs.spare(connection, row)
            crashes += int(counts)
            crashed.append(crashed_attempt(row, now, crash_reports.describe(row), counts=counts))
        granted = Claim(message, row.fence + 1, row.failures + 1, row.failures, crashes, now, unseen=unanswered)
        granted.ahead = request.ahead
        granted.quarantine = crashes >= request.max_crashes
        granted.crash = crashed[-1]["error"] if crashes > row.crashes else None
        updates.append(_claimed_row(granted, worker))
        again.append(granted)
        answers.append(granted)
    if inserts:
        database.execute_many(connection, database.insert(jobs), inserts)
        record_terms(connection, database, inserts)
    if updates:
        database.execute_many(connection, _CLAIMED, updates)
        if later:
            go_on(connection, database, later, now)
        # Who recorded the job may not have known its kind, and then not which of its fields are searchable.
        record_terms(
            connection, database, [message_row(claim.message, now) for claim in again if claim.message.kind.search]
        )
    if crashed:
        connection.execute(database.insert_ignore(attempts), crashed)
        count_rows(connection, Outcome.CRASHED, [rows[attempt["job_id"]] for attempt in crashed])
    return answers


def _refuse(request: ClaimRequest, row: Any, leases: dict[str, datetime], worker: str, now: datetime) -> Refusal | None:
    """Rules that make a second delivery of a job harmless."""
    message = request.message
    if row.state in FINAL:
        return Refusal(message, "cancelled" if row.state == State.CANCELLED else "ended")
    if row.cancel_requested and row.state != State.RUNNING:
        return Refusal(message, "cancelled")
    if message.fence < row.fence and (row.state in WAITING or (row.state == State.QUEUED and row.worker is None)):
        # A copy of an earlier sending. The valid one carries the current fence. It may even arrive before the
        # dispatcher's "sent" is committed, so the state alone does not decide. A job that a worker released keeps that
        # worker's name, and goes on under the fence with which it was sent.
        return Refusal(message, "duplicate")
    if row.state == State.RUNNING and message.kind.delivery == "at_most_once":
        # It may have run: a message comes again if its acknowledgement was lost. The dispatcher buries the job once its
        # worker's lease has ended.
        return Refusal(message, "duplicate")
    if row.state == State.RUNNING:
        own = row.worker == worker
        lease = leases.get(row.worker)
        alive = own or (lease is not None and lease > now)
        if alive and not request.redelivered:
            return Refusal(message, "duplicate")  # the live worker, this one too, still holds the original delivery
        if alive and not own and message.kind.delivery == "once":
            return Refusal(message, "held", until=lease)
    return None


_CLAIMED = (
    sa.update(jobs)
    .where(jobs.c.id == sa.bindparam("b_id"))
    .values(
        state=State.RUNNING,
        worker=sa.bindparam("b_worker"),
        fence=sa.bindparam("b_fence"),
        attempt=sa.bindparam("b_attempt"),
        crashes=sa.bindparam("b_crashes"),
        started_at=sa.bindparam("b_started_at"),
        delivery=sa.bindparam("b_delivery"),  # a dispatcher that does not know the kind guessed it
        finished_at=None,
        due_at=None,
    )
)


def _new_row(granted: Claim, worker: str) -> Row:
    # Only what is not null: each further column would be bound for every row.
    row = message_row(granted.message, granted.started_at)
    if granted.ahead:
        row["started_at"] = None
    row.update(state=State.RUNNING, worker=worker, fence=1, attempt=granted.attempt, failures=granted.failures)
    return row


def _claimed_row(granted: Claim, worker: str) -> Row:
    return {
        "b_id": granted.message.id,
        "b_worker": worker,
        "b_fence": granted.fence,
        "b_attempt": granted.attempt,
        "b_crashes": granted.crashes,
        "b_started_at": None if granted.ahead else granted.started_at,
        "b_delivery": granted.message.kind.delivery,
    }


def _end_cancelled(
    connection: sa.Connection, database: Database, row: Any, now: datetime, crash_reports: CrashReports
) -> None:
    change = final_columns(State.CANCELLED, now, fence=row.fence + 1, crashes=row.crashes + 1, cancel_requested=False)
    connection.execute(sa.update(jobs).where(jobs.c.id == row.id).values(**change))
    announce_ends(connection, database, [row.id])
    count_rows(connection, Outcome.CANCELLED, [row])
    connection.execute(database.insert_ignore(attempts), [crashed_attempt(row, now, crash_reports.describe(row))])


def _leases(connection: sa.Connection, names: set[str | None], now: datetime) -> dict[str, datetime]:
    """When the leases of these workers end or ended, as seen by a clock that shows `now`."""
    left = [workers.c.lease_until, from_now().label("now")]
    select = sa.select(workers.c.name, *left).where(
        workers.c.name.in_([name for name in names if name]), workers.c.stopped_at.is_(None)
    )
    return {row.name: now + (row.lease_until - row.now) for row in connection.execute(select)}
