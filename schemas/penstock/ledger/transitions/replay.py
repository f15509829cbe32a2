"""How dead letters become waiting jobs again: one, or ten thousand, a batch in a transaction.

A letter of a job changes the job's row. A raw letter, of a message that was never read, is read anew: a kind, version
or field that is understood by now is taken.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import sqlalchemy as sa

from penstock.config.errors import InvalidJob, InvalidState, JobNotFound, PenstockError, UndecodableMessage
from penstock.ledger.members import heartbeats
from penstock.ledger.rows import audit
from penstock.ledger.rows.attempts import keep_success
from penstock.ledger.rows.jobs import Row
from penstock.ledger.sql.clock import from_now
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import dead_letters, jobs
from penstock.ledger.transitions import revive as orders
from penstock.ledger.transitions.due import waiting
from penstock.ledger.transitions.edit import CONTENT, edited_envelope, edited_row, embed_column
from penstock.ledger.transitions.revive import JUDGED, REVIVED, check_state
from penstock.ledger.transitions.revive import close as _close
from penstock.schemas.states import State
from penstock.schemas.wire.codec import HEADER, Envelope, decode, encode

BATCH = 250
"""Letters in a transaction. Raw ones and edited ones hold up to 256 KiB each while it lasts."""

_LATER = sa.update(jobs).where(jobs.c.id == sa.bindparam("b_id")).values(due_at=sa.bindparam("b_due_at"), **REVIVED)
_ANEW = _LATER.values(**{name: sa.bindparam(f"b_{name}") for name in CONTENT})


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became, or would become, of one letter.

    Attributes:
        due_at: when its job is due again; None where nothing is done, or it is discarded.
        problem: why nothing is done; None where it is.
    """

    id: str
    kind: str | None = None
    queue: str | None = None
    due_at: datetime | None = None
    problem: PenstockError | None = None


@dataclass(frozen=True, slots=True)
class _Planned:
    verdict: Verdict
    fresh: Row | None = None
    """A whole row, of a letter that was read anew; or the columns that an edit changes."""
    missing: bool = False
    """The job has no row in the ledger."""


def replay(
    database: Database,
    ids: Sequence[str],
    *,
    actor: str,
    act: str = "replay",
    subject_kind: str = "dead letter",
    detail: Mapping[str, Any] | None = None,
    edit: Mapping[str, Any] | None = None,
    per_second: float | None = None,
    dry_run: bool = False,
    discarded_too: bool = False,
) -> list[Verdict]:
    """Let these letters be tried again, in this order. One that cannot be does not stop the others.

    Arguments:
        act, subject_kind, detail: for the audit log.
        edit: fields to set, as JSON values; each letter is checked before the first is replayed.
        per_second: how many become due in a second; None: all at once.
        dry_run: find out what would happen, and write nothing.
        discarded_too: also letters that were discarded.

    Raises:
        InvalidJob: the edit does not fit a letter. Nothing was replayed. LedgerUnavailable: the batches before are
            replayed, and on record.
    """
    planner = _Planner(database, heartbeats.known_kinds(database), edit, discarded_too, _now(database), per_second)
    if dry_run or edit:
        verdicts = _in_batches(ids, planner.look)
        if dry_run:
            return verdicts
        _check_all_fit(verdicts)
    entry = audit.Entry(database, actor=actor, act=act, subject_kind=subject_kind, detail=detail, one=len(ids) == 1)
    return _in_batches(ids, partial(planner.perform, entry))


def discard(
    database: Database, ids: Sequence[str], *, actor: str, detail: Mapping[str, Any], dry_run: bool = False
) -> list[Verdict]:
    """Close these letters; their jobs stay dead."""
    entry = audit.Entry(
        database, actor=actor, act="discard", subject_kind="dead letter", detail=detail, one=len(ids) == 1
    )

    def judge(connection: sa.Connection, batch: Sequence[str], *, lock: bool) -> list[Verdict]:
        letters = _by_id(connection, database, sa.select(*_LETTER), dead_letters.c.id, batch, lock)
        return [_judged(one, letters.get(one)) for one in batch]

    def look(batch: Sequence[str], _done: int) -> list[Verdict]:
        return database.read(lambda connection: judge(connection, batch, lock=False))

    def perform(batch: Sequence[str], _done: int) -> list[Verdict]:
        def write(connection: sa.Connection) -> tuple[list[Verdict], str | None]:
            verdicts = judge(connection, batch, lock=True)
            done = [one.id for one in verdicts if one.problem is None]
            _close(connection, database, done, "discarded_at")
            return verdicts, entry.write(connection, done)

        verdicts, entry.line = database.write(write)
        return verdicts

    return _in_batches(ids, look if dry_run else perform)


def revive(connection: sa.Connection, database: Database, job_id: str, states: Sequence[State]) -> State:
    """`orders.revive`, also of a job that succeeded, whose attempt is then kept."""
    if State.SUCCEEDED in states:
        keep_success(connection, job_id)  # nothing, unless that is its state
    return orders.revive(connection, database, job_id, states)


_LETTER = (
    dead_letters.c.id,
    dead_letters.c.kind,
    dead_letters.c.queue,
    dead_letters.c.replayed_at,
    dead_letters.c.discarded_at,
)


@dataclass(frozen=True)
class _Planner:
    """Finds out what is to be done with each letter of a batch, and does it."""

    database: Database
    known: Mapping[str, str]
    edit: Mapping[str, Any] | None
    discarded_too: bool
    start: datetime
    per_second: float | None

    def look(self, ids: Sequence[str], done: int) -> list[Verdict]:
        """What would become of them.

        Arguments:
            done: how many of the batches before are due.
        """
        planned = self.database.read(lambda connection: self._plan(connection, ids, done, lock=False))
        return [one.verdict for one in planned]

    def perform(self, entry: audit.Entry, ids: Sequence[str], done: int) -> list[Verdict]:
        def write(connection: sa.Connection) -> tuple[list[_Planned], str | None]:
            planned = self._plan(connection, ids, done, lock=True)
            fit = [one for one in planned if one.verdict.problem is None]
            _revive_all(connection, self.database, fit)
            return planned, entry.write(connection, [one.verdict.id for one in fit])

        planned, entry.line = self.database.write(write)
        return [one.verdict for one in planned]

    def _plan(self, connection: sa.Connection, ids: Sequence[str], done: int, *, lock: bool) -> list[_Planned]:
        columns = [jobs.c[name] for name in CONTENT] if self.edit else [jobs.c.kind, jobs.c.queue]
        found = _by_id(connection, self.database, sa.select(*JUDGED, *columns), jobs.c.id, ids, lock)
        letter = sa.select(*_LETTER, dead_letters.c.headers, dead_letters.c.raw)
        letters = _by_id(connection, self.database, letter, dead_letters.c.id, ids, lock)
        due = self._due_times(done)
        planned = []
        for one in ids:
            try:
                plan = _plan_one(one, letters.get(one), found.get(one), self.known, self.edit, self.discarded_too)
            except PenstockError as problem:
                planned.append(_Planned(_refused(one, letters.get(one), problem)))
            else:
                planned.append(replace(plan, verdict=replace(plan.verdict, due_at=next(due))))
        return planned

    def _due_times(self, done: int) -> Iterator[datetime]:
        rate = self.per_second
        if rate is None:
            return itertools.repeat(self.start)
        return (self.start + timedelta(seconds=number / rate) for number in itertools.count(done))


def _now(database: Database) -> datetime:
    """By the clock of the database: an operator's machine may be minutes off."""
    now: datetime = database.read(lambda connection: connection.execute(sa.select(from_now())).scalar_one())
    return now


def _in_batches(ids: Sequence[str], step: Callable[[Sequence[str], int], list[Verdict]]) -> list[Verdict]:
    verdicts: list[Verdict] = []
    done = 0
    for at in range(0, len(ids), BATCH):
        new = step(ids[at : at + BATCH], done)
        done += sum(verdict.problem is None for verdict in new)
        verdicts += new
    return verdicts


def _by_id(
    connection: sa.Connection,
    database: Database,
    select: sa.Select[Any],
    column: sa.Column[str],
    ids: Sequence[str],
    lock: bool,
) -> dict[str, Any]:
    select = select.where(database.among(column, ids)).order_by(column)
    return {row.id: row for row in connection.execute(database.locked(select) if lock else select)}


def _plan_one(
    letter_id: str,
    letter: Any,
    job: Any,
    known: Mapping[str, str],
    edit: Mapping[str, Any] | None,
    discarded_too: bool,
) -> _Planned:
    _check_open(letter_id, letter, discarded_too)
    if letter.raw is not None:
        # Under the letter's own id: the one in the message may be that of another job, of which this was a bad copy.
        fresh: Row | None = _read_again(letter, known, edit) | {"id": letter_id}
    elif job is None:
        raise InvalidState(f"dead letter {letter_id} has no job in the ledger any more")
    else:
        fresh = None
    if job is not None:
        check_state(job, (State.DEAD,), read_anew=fresh is not None)
        if fresh is None and edit:
            fresh = edited_row(job, edit)
    source = fresh or {"kind": job.kind, "queue": job.queue}
    return _Planned(Verdict(letter_id, source["kind"], source["queue"]), fresh, missing=job is None)


def _judged(letter_id: str, letter: Any) -> Verdict:
    try:
        _check_open(letter_id, letter, discarded_too=False)
    except PenstockError as problem:
        return _refused(letter_id, letter, problem)
    return Verdict(letter_id, letter.kind, letter.queue)


def _refused(letter_id: str, letter: Any, problem: PenstockError) -> Verdict:
    kind, queue = (None, None) if letter is None else (letter.kind, letter.queue)
    return Verdict(letter_id, kind, queue, problem=problem)


def _check_open(letter_id: str, letter: Any, discarded_too: bool) -> None:
    if letter is None:
        raise JobNotFound(f"no dead letter has the id {letter_id}")
    if letter.replayed_at is not None:
        raise InvalidState(f"dead letter {letter_id} was replayed already at {letter.replayed_at.isoformat()}")
    if letter.discarded_at is not None and not discarded_too:
        raise InvalidState(
            f"dead letter {letter_id} was discarded at {letter.discarded_at.isoformat()}; "
            f"to run its job all the same: penstock jobs retry {letter_id}"
        )


def _check_all_fit(verdicts: Sequence[Verdict]) -> None:
    unfit = [verdict for verdict in verdicts if isinstance(verdict.problem, InvalidJob)]
    if unfit:
        more = f" (and {len(unfit) - 1} more of {len(verdicts)})" if len(unfit) > 1 else ""
        raise InvalidJob(f"{unfit[0].problem}{more}; nothing was replayed")


def _revive_all(connection: sa.Connection, database: Database, planned: Sequence[_Planned]) -> None:
    changed: list[Row] = []
    later: list[Row] = []
    new: list[Row] = []
    for one in planned:
        id, due_at = one.verdict.id, one.verdict.due_at
        if one.fresh is None:
            later.append({"b_id": id, "b_due_at": due_at})
        elif one.missing:
            new.append({**one.fresh, "due_at": due_at})
        else:
            content = {f"b_{name}": one.fresh[name] for name in CONTENT}
            changed.append({"b_id": id, "b_due_at": due_at, **content})
    times = {row["b_due_at"] for row in later}
    if len(times) == 1:
        mine = database.among(jobs.c.id, [row["b_id"] for row in later])
        connection.execute(sa.update(jobs).where(mine).values(due_at=times.pop(), **REVIVED))
    elif later:
        database.execute_many(connection, _LATER, later)
    if changed:
        database.execute_many(connection, _ANEW, changed)
    if new:
        connection.execute(database.insert(jobs), new)
    _close(connection, database, [one.verdict.id for one in planned], "replayed_at")


def _read_again(letter: Any, known: Mapping[str, str], edit: Mapping[str, Any] | None) -> Row:
    """The waiting row of a raw letter's message, in the words of the kind as it is now."""
    if letter.headers is None:
        raise InvalidState(f"dead letter {letter.id} holds bytes that are no message; it can be shown but not replayed")
    envelope = Envelope(letter.queue, "normal", json.loads(letter.headers), letter.raw)
    try:
        if edit:
            envelope = edited_envelope(envelope, letter.id, edit)
        message = decode(envelope)
    except UndecodableMessage as error:
        if error.reason == "unknown_kind" and envelope.kind in known and not edit:
            # Not known to this process, but to a worker, which will judge it.
            envelope.queue = known[envelope.kind]
            return waiting(envelope) | {"expires_at": None}
        hint = "; import the module that defines it with --import" if error.reason == "unknown_kind" else ""
        raise InvalidState(
            f"dead letter {letter.id} cannot be replayed yet: {error.reason}: {error.detail}{hint}"
        ) from error
    again = encode(
        message.job,
        id=letter.id,
        queue=message.queue if HEADER in envelope.headers else message.kind.queue,
        priority=message.priority,
        key=message.key,
        tenant=message.tenant,
        sent_at=message.sent_at,
        traceparent=message.traceparent,
    )
    row = waiting(again)
    row["embed"] = embed_column(message.embed)
    return row
