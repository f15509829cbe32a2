"""Dead letters: what will not be tried again by itself, kept with everything needed to replay it.

There are two sorts. A *job's* letter says why the job in the ledger is dead; `claims` writes it with the outcome. A
*raw* letter keeps the bytes of a message that never became a job here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

import sqlalchemy as sa

from penstock.config.errors import InvalidJob, JobNotFound, UndecodableMessage
from penstock.ledger.queries.failure_groups import Group as Group
from penstock.ledger.queries.failure_groups import groups as groups
from penstock.ledger.queries.scope import EVERYTHING, SCOPED, UNREAD, Scope
from penstock.ledger.queries.selection import OPEN, PLACED, WITH_JOBS, matching, read_page
from penstock.ledger.queries.selection import Selection as Selection
from penstock.ledger.rows import audit, steps
from penstock.ledger.rows.attempts import history
from penstock.ledger.rows.dead_letters import fingerprint
from penstock.ledger.rows.envelopes import waiting_row
from penstock.ledger.rows.jobs import Row
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import dead_letters, jobs
from penstock.ledger.transitions import replay as replays
from penstock.ledger.transitions.due import waiting
from penstock.ledger.transitions.replay import Verdict as Verdict
from penstock.schemas.jobs.kind import registry
from penstock.schemas.states import State
from penstock.schemas.wire.codec import Envelope, is_id, payload
from penstock.schemas.wire.ids import new_id

HIDDEN = "***"

_OVERWRITTEN = frozenset({State.SCHEDULED, State.QUEUED})
"""States of a job whose message turned out unreadable. In any other the message is a copy, and the job goes on."""


def add(database: Database, envelope: Envelope, raw: bytes, reason: str, detail: str) -> str:
    """Keep a message that cannot become a job. Returns the letter's id: the job's where it has one, else a new one.

    The job shows as dead from then on. Adding the same message twice, as a crash before its acknowledgement does,
    keeps it once.

    Arguments:
        raw: the bytes as they came; kept where there are no headers, else the body is.
        reason: `undecodable`, `unknown_kind`, `invalid_payload`, `unknown_version`, `unsupported`, `no_handler` or
            `delivery_limit`.

    Raises:
        LedgerUnavailable: nothing was written.
    """
    return database.write(lambda connection: _add(connection, database, envelope, raw, reason, detail))


def _add(
    connection: sa.Connection, database: Database, envelope: Envelope, raw: bytes, reason: str, detail: str
) -> str:
    now = datetime.now(UTC)
    headers = envelope.headers
    letter = {
        "id": new_id(),
        "kind": _clean(headers.get("task"), 128),
        "queue": _clean(envelope.queue, 128) or "",
        "reason": reason,
        "detail": (_clean(detail, 4000) or ""),
        "fingerprint": fingerprint(_clean(headers.get("task"), 128), f"{reason}: {detail}"),
        "headers": json.dumps(headers, default=str) if headers else None,  # AMQP tables also hold times and bytes
        "raw": envelope.body if headers else raw,
        "created_at": now,
        "replayed_at": None,
        "discarded_at": None,
    }
    if is_id(headers.get("id")):
        job_id = headers["id"]
        state = connection.execute(database.locked(sa.select(jobs.c.state).where(jobs.c.id == job_id))).scalar()
        earlier = connection.execute(
            sa.select(dead_letters.c.raw, dead_letters.c.replayed_at).where(dead_letters.c.id == job_id)
        ).first()
        if earlier is not None and earlier.replayed_at is None and earlier.raw == letter["raw"]:
            return str(job_id)
        if state is None or state in _OVERWRITTEN:
            letter["id"] = job_id
            change = {"state": State.DEAD, "finished_at": now, "due_at": None, "error": letter["detail"]}
            if state is not None:
                connection.execute(sa.update(jobs).where(jobs.c.id == job_id).values(**change))
                steps.stopped(connection, database, [job_id])
            elif letter["kind"] is not None:
                connection.execute(database.insert_ignore(jobs), [_row_of(envelope, now) | change])
    connection.execute(database.upsert(dead_letters), [letter])
    return str(letter["id"])


def _row_of(envelope: Envelope, now: datetime) -> Row:
    """As much of a job as can be read of a message, so that its handle finds it."""
    try:
        return waiting(envelope)
    except UndecodableMessage:
        kind = str(envelope.kind)[:128].replace("\0", "").encode(errors="replace").decode()
        known = registry.find(kind)
        body = b"[[],{},null]"
        queue = known.queue if known else (_clean(envelope.queue, 128) or "")
        return waiting_row(Envelope(queue, "normal", {"id": envelope.id, "task": kind}, body), now)


@dataclass(frozen=True, slots=True)
class Shown:
    """One letter with all there is to know before deciding about it.

    Attributes:
        letter: its row, with the bytes as they came.
        headers: of a message that never became a job, without what may be sensitive.
        payload: the fields, sensitive ones hidden; of a kind that is not known here, all are.
        job: its row; None where the ledger has none.
        attempts: rows, the first one first.
        decisions: from the audit log, the newest first.
    """

    letter: Any
    headers: dict[str, Any] | None
    payload: dict[str, Any]
    job: Any
    attempts: Sequence[Any]
    decisions: Sequence[audit.Act]


def find(
    database: Database, selection: Selection = OPEN, *, before: str | None = None, limit: int = 50
) -> Sequence[Any]:
    """Rows of dead letters, the newest first, without headers and bytes; with the keys and tenants of their jobs.

    Arguments:
        before: the id of one: only those that come after it in this order.

    Raises:
        JobNotFound: no dead letter has the id `before`.
    """
    columns = [column for column in dead_letters.c if column.name not in ("raw", "headers")]
    select = sa.select(*columns, jobs.c.key, jobs.c.tenant, UNREAD).select_from(WITH_JOBS)
    select = select.where(*matching(database, selection), *selection.scope.conditions())

    def find_page(connection: sa.Connection) -> list[Any]:
        last = None
        if before is not None:
            placed = sa.select(*PLACED, *SCOPED).select_from(WITH_JOBS).where(dead_letters.c.id == before)
            last = connection.execute(placed).first()
            if last is None or not selection.scope.includes_dead_letter(last):
                raise JobNotFound(f"no dead letter has the id {before}")
        return read_page(connection, select, selection, limit, newest_first=True, last=last)

    return database.read(find_page)


def show(database: Database, letter_id: str, *, scope: Scope = EVERYTHING) -> Shown:
    """A dead letter with its message, its attempts, and the decisions about it.

    Raises:
        JobNotFound: no dead letter has this id, or it is outside of the scope.
    """

    def read(connection: sa.Connection) -> Shown:
        letter = connection.execute(sa.select(dead_letters).where(dead_letters.c.id == letter_id)).first()
        scoped = sa.select(*SCOPED).select_from(WITH_JOBS).where(dead_letters.c.id == letter_id)
        if letter is None or not scope.includes_dead_letter(connection.execute(scoped).one()):
            raise JobNotFound(f"no dead letter has the id {letter_id}")
        job = connection.execute(sa.select(jobs).where(jobs.c.id == letter_id)).first()
        ran = sa.select(history).where(history.c.job_id == letter_id).order_by(history.c.fence)
        if letter.raw is not None:
            content = payload(letter.raw)
        else:
            content = (json.loads(job.payload) or {}) if job is not None else {}
        return Shown(
            letter,
            None if letter.headers is None else _without_values(json.loads(letter.headers)),
            _hidden(letter.kind, content),
            job,
            connection.execute(ran).all(),
            audit.read(connection, subject=letter_id, limit=1000),
        )

    return database.read(read)


def replay(
    database: Database,
    selection: Selection,
    *,
    actor: str,
    edit: Mapping[str, Any] | None = None,
    per_second: float | None = None,
    dry_run: bool = False,
    limit: int | None = None,
) -> list[Verdict]:
    """Let dead letters be tried again, the oldest first: their jobs wait in the ledger, due now, with failures and
    crashes forgotten.

    A job keeps its id, so its handle finds it. A raw letter is read anew: a kind, version or field that is understood
    by now is taken. One letter that cannot be replayed does not stop the others.

    Arguments:
        actor: who, for the audit log.
        edit: fields to set in each payload, as JSON values; of one letter, or of one group. None for a name that is no
            field takes it out.
        per_second: how many of them become due in a second; None: all at once.
        dry_run: say what would happen, and write nothing.
        limit: how many at most.

    Raises:
        InvalidJob: the edit does not fit one of them, or they are of several groups. Nothing was replayed.
        LedgerUnavailable: those before are replayed and on record.
    """
    if per_second is not None and not per_second > 0:
        raise ValueError(f"per_second must be more than zero, not {per_second}")
    if edit and len(selection.ids or ()) != 1 and selection.group is None:
        raise InvalidJob("an edit is for one dead letter or one group; name its id, or the group")
    detail = dict(selection.filters)
    if edit:
        detail["edited"] = sorted(edit)
    if per_second is not None:
        detail["per_second"] = per_second
    decide = partial(
        replays.replay,
        database,
        actor=actor,
        act="edit" if edit else "replay",
        detail=detail,
        edit=edit,
        per_second=per_second,
        dry_run=dry_run,
    )
    return _decide(database, selection, limit, decide)


def replay_one(database: Database, letter_id: str, *, actor: str, edit: Mapping[str, Any] | None = None) -> None:
    """`replay` of one letter, or the reason why not.

    Raises:
        JobNotFound: no such letter. InvalidState: it was decided about before, its job is not dead, or its message
            cannot be read still. InvalidJob: the edit does not fit. LedgerUnavailable.
    """
    [verdict] = replay(database, Selection(ids=(letter_id,)), actor=actor, edit=edit)
    if verdict.problem is not None:
        raise verdict.problem


def discard(
    database: Database,
    selection: Selection,
    *,
    actor: str,
    reason: str,
    dry_run: bool = False,
    limit: int | None = None,
) -> list[Verdict]:
    """Close dead letters, the oldest first: nothing is to be done about them. They stay on record, and their jobs dead.

    Arguments:
        reason: why; not empty. It is kept in the audit log.
        dry_run, limit: as for `replay`.
    """
    if not reason.strip():
        raise ValueError("discarding a dead letter needs a reason")
    detail = {**selection.filters, "why": reason}
    decide = partial(replays.discard, database, actor=actor, detail=detail, dry_run=dry_run)
    return _decide(database, selection, limit, decide)


def _decide(
    database: Database, selection: Selection, limit: int | None, decide: Callable[[Sequence[str]], list[Verdict]]
) -> list[Verdict]:
    """Decide about these dead letters, the oldest first. Those that were named are all in the answer."""
    select = sa.select(*PLACED, *SCOPED).select_from(WITH_JOBS).where(*selection.scope.conditions())
    if selection.ids is None or selection.filters:
        select = select.where(*matching(database, selection))
        return decide(
            database.read(lambda connection: [row.id for row in read_page(connection, select, selection, limit)])
        )
    ids = list(dict.fromkeys(selection.ids))[:limit]
    if not selection.scope.is_bounded:
        return decide(ids)
    select = select.where(database.among(dead_letters.c.id, ids))
    within = database.read(lambda connection: {row.id for row in read_page(connection, select, selection, None)})
    verdicts = {verdict.id: verdict for verdict in decide([id for id in ids if id in within])}
    return [verdicts.get(id) or Verdict(id, problem=JobNotFound(f"no dead letter has the id {id}")) for id in ids]


def _hidden(kind_name: str | None, content: Mapping[str, Any]) -> dict[str, Any]:
    """Which fields are sensitive is declared beside the kind; of one that is not known here, any may be."""
    kind = registry.find(kind_name or "")
    return kind.redact(content) if kind is not None else dict.fromkeys(content, HIDDEN)


def _without_values(headers: dict[str, Any]) -> dict[str, Any]:
    """Stock clients put the arguments' text into the headers, where sensitive values cannot be told apart."""
    return {name: HIDDEN if name in ("argsrepr", "kwargsrepr") else value for name, value in headers.items()}


def _clean(text: object, longest: int) -> str | None:
    """What any database takes of a stranger's text."""
    if not isinstance(text, str):
        return None
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()[:longest]
