"""Empties outboxes: what a web backend has committed is recorded, sent, and only then taken out.

A batch is *taken* first (`taken_by`, `taken_until`; rows that another dispatcher has are skipped), and in the ledger it
waits, *reserved*, until the broker has it. A dispatcher that dies at any point leaves rows that are taken again when
the reservation ends. The ledger knows the id by then, and a second copy is refused by the claim.

A row leaves the outbox after it was sent. So to keep the order of a key, however many dispatchers there are, it is
enough to leave a row alone while an earlier one of its key is there and not in the same batch.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, OperationalError

from penstock.config.errors import PenstockError, QueueFull, UndecodableMessage
from penstock.config.settings import Settings, redact_url
from penstock.ledger.queries import dead_letters
from penstock.ledger.rows.jobs import RESERVED, Row, mark_sent, reserved, waiting
from penstock.ledger.sql.clock import from_now
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import jobs, outbox
from penstock.ledger.transitions.cancel import Seen, cancel_unseen, cancelled_before
from penstock.ledger.transitions.enqueue import Admissions
from penstock.producers.senders import Sender, open_sender
from penstock.schemas.jobs.kind import DISPATCHER_QUEUE
from penstock.schemas.jobs.unique_policy import Unique
from penstock.schemas.states import State
from penstock.schemas.wire.codec import Envelope
from penstock.schemas.wire.ids import new_id
from penstock.workers.dispatcher.outbox.notifications import Notifications
from penstock.workers.dispatcher.poller import Poller, log

BATCH = 500
_POLL_SECONDS, _POLL_SECONDS_WHEN_TOLD = 0.05, 0.1
_FULL_FOR_SECONDS = 1.0
_READ = ("position", "id", "kind", "queue", "priority", "key", "track", "policy", "headers", "body")


def open_outboxes(settings: Settings, ledger: Database, after: threading.Event | None = None) -> list[Poller]:
    """The services for the outbox in the ledger's database and for those that the settings name.

    Arguments:
        after: what to wait for before the first sending.
    """
    services: list[Poller] = []
    for url in dict.fromkeys((settings.database_url, *settings.outbox_urls)):
        database = ledger if url == settings.database_url else Database(url)
        # Without the queues' max_length, and so that a slow send of theirs does not hold up the due jobs.
        sender = open_sender(
            settings.broker_url, prefix=settings.prefix, timeout_seconds=settings.broker_timeout_seconds
        )
        relay = OutboxRelay(database, ledger, sender, after)
        services.append(relay)
        if Notifications.possible(database):
            services.append(Notifications(database, relay.news))
    return services


@dataclass(slots=True)
class _Entry:
    """One row: what is in it, and the job's row in the ledger (None: it goes to the broker alone)."""

    position: int
    envelope: Envelope
    policy: Unique | None
    row: Row | None


@dataclass(slots=True)
class _Batch:
    """Rows that were taken.

    Attributes:
        token: what they are taken by.
        now: on the clock of the ledger's database, and `until` when their jobs wait there, reserved: longer than the
            rows are taken, so that it is an outbox's relay that goes on if this one dies, in the order of the rows.
        more: whether there may be more rows.
        bad: rows that cannot be read.
        plain, unique: ids of jobs that are reserved there and to be sent.
    """

    token: str
    now: datetime
    rows: Sequence[Any] = ()
    more: bool = False
    entries: list[_Entry] = field(default_factory=list)
    bad: list[tuple[Envelope, UndecodableMessage]] = field(default_factory=list)
    plain: list[str] = field(default_factory=list)
    unique: list[str] = field(default_factory=list)

    @property
    def until(self) -> datetime:
        return self.now + 2 * RESERVED

    def read(self) -> None:
        for row in self.rows:
            try:
                self.entries.append(_open(row, self.until))
            except UndecodableMessage as error:
                headers = {"id": row.id, "task": row.kind}
                self.bad.append((Envelope(row.queue, "normal", headers, bytes(row.body)), error))

    def about(self) -> list[Seen]:
        rows = [entry.row for entry in self.entries if entry.row is not None and entry.row["key"] is not None]
        return [(row["id"], row["kind"], row["key"], row["tenant"], row["enqueued_at"]) for row in rows]

    def sending(self, gone: set[str]) -> list[_Entry]:
        """In order, each id once."""
        ready = {*self.plain, *self.unique} - gone
        found: dict[str, _Entry] = {}
        for entry in self.entries:
            if entry.row is None or entry.envelope.id in ready:
                found.setdefault(entry.envelope.id, entry)
        return list(found.values())


class OutboxRelay(Poller):
    """Moves the jobs of one outbox to the broker.

    Attributes:
        news: set when something was committed, where the database tells.
    """

    interval_seconds = 0.0  # `work` waits

    def __init__(
        self, database: Database, ledger: Database, sender: Sender, after: threading.Event | None = None
    ) -> None:
        self.name = "outbox" if database is ledger else f"outbox of {redact_url(database.url)}"
        super().__init__()
        self._database, self._ledger, self._sender, self._after = database, ledger, sender, after
        self.news = threading.Event()
        self._pause = _POLL_SECONDS_WHEN_TOLD if Notifications.possible(database) else _POLL_SECONDS
        self._full: dict[str, float] = {}
        self._more = True
        self._limit = BATCH
        self._last: Sequence[Any] = ()

    def wake(self) -> None:
        self.news.set()

    def close(self) -> None:
        self._sender.close()
        if self._database is not self._ledger:
            self._database.close()

    def work(self) -> bool:
        if self._after is not None and not self._after.is_set():
            self._after.wait(self._pause)
            return False
        told = self._more or self.news.is_set()
        self.news.clear()  # before looking: what is committed meanwhile wakes the next round
        self._more = (told or self._database.read(_look)) and self._relay()
        if not self._more:
            self.news.wait(self._pause)
        return True

    def _relay(self) -> bool:
        """One batch. Whether there may be more."""
        try:
            batch = self._take()
        except PenstockError:
            raise
        except Exception as error:
            if isinstance(error, OperationalError):
                raise  # of the database, not of a row
            self._close_in(error)
            return True
        self._limit = min(self._limit * 2, BATCH)
        for envelope, why in batch.bad:
            log.error("job %s of the outbox is a dead letter: %s", envelope.id, why)
            dead_letters.add(self._ledger, envelope, envelope.body, why.reason, why.detail)
        about = batch.about()
        gone = cancel_unseen(self._ledger, about) if about else set()
        self._send(batch, batch.sending(gone))
        return batch.more

    def _take(self) -> _Batch:
        """Take a batch and enter it in the ledger; in one transaction where both are in one database."""
        token = new_id()
        full = self._still_full()

        def take(connection: sa.Connection) -> _Batch:
            batch = _take(connection, self._database, token, self._limit, full)
            self._last = batch.rows
            return batch

        if self._database is self._ledger:

            def move(connection: sa.Connection) -> _Batch:
                batch = take(connection)
                _enter(connection, self._ledger, batch)
                return batch

            return self._database.write(move)
        taken = self._database.write(take)
        if not taken.rows:
            return taken
        try:
            there = self._ledger.read(lambda connection: connection.execute(sa.select(_NOW)).scalar_one())

            def enter(connection: sa.Connection) -> _Batch:
                batch = _Batch(token, there, taken.rows, taken.more)
                _enter(connection, self._ledger, batch)
                return batch

            return self._ledger.write(enter)
        except Exception:
            self._database.write(lambda connection: _let_go(connection, self._database, token, taken.rows, ()))
            raise

    def _send(self, batch: _Batch, entries: Sequence[_Entry]) -> None:
        began = time.monotonic()
        try:
            if entries:
                self._sender.send([entry.envelope for entry in entries])
        except PenstockError as error:
            self._give_back(batch, entries)
            if not isinstance(error, QueueFull):
                raise
            log.warning("%s; its jobs wait in the outbox", error)
            self._full[error.queue] = time.monotonic() + _FULL_FOR_SECONDS
            return
        ids = [entry.envelope.id for entry in entries if entry.row is not None]

        def mark(connection: sa.Connection) -> None:
            if ids:
                mark_sent(connection, self._ledger, ids, batch.until, began)

        def take_out(connection: sa.Connection) -> None:
            _let_go(connection, self._database, batch.token, (), batch.rows)

        self._write_both(mark, take_out)

    def _give_back(self, batch: _Batch, entries: Sequence[_Entry]) -> None:
        """The broker is away: the outbox keeps what is to be sent, in its order. What the ledger keeps waiting for
        other reasons (a delay, a key that was granted) stays there, and the due jobs are sent by themselves."""
        stay = {entry.position for entry in entries if entry.policy is None}

        def put_off(connection: sa.Connection) -> None:
            if batch.plain:
                # Those that a worker has meanwhile, for some were sent, are not waiting any more.
                mine = sa.and_(reserved(self._ledger, batch.plain, batch.until), jobs.c.fence == 0)
                connection.execute(sa.delete(jobs).where(mine))
            if batch.unique:
                mine = reserved(self._ledger, batch.unique, batch.until)
                connection.execute(sa.update(jobs).where(mine).values(due_at=from_now()))

        def keep(connection: sa.Connection) -> None:
            kept = [row for row in batch.rows if row.position in stay]
            done = [row for row in batch.rows if row.position not in stay]
            _let_go(connection, self._database, batch.token, kept, done)

        self._write_both(put_off, keep)

    def _write_both(self, ledgers: Any, outboxs: Any) -> None:
        """Write to the ledger, then to the outbox."""

        def both(connection: sa.Connection) -> None:
            ledgers(connection)
            outboxs(connection)

        if self._database is self._ledger:
            self._database.write(both)
        else:
            self._ledger.write(ledgers)
            self._database.write(outboxs)

    def _still_full(self) -> list[str]:
        now = time.monotonic()
        self._full = {queue: until for queue, until in self._full.items() if until > now}
        return list(self._full)

    def _close_in(self, error: Exception) -> None:
        """A database does not take one of the batch. It must not stop the others, so it is closed in on and buried."""
        if self._limit > 1 or not self._last:
            self._limit = max(self._limit // 2, 1)
            return
        [row] = self._last
        text = str(error.orig) if isinstance(error, DBAPIError) else str(error)
        why = f"{type(error).__name__}: {text}"
        log.error("job %s of the outbox is a dead letter: %s", row.id, why)
        envelope = Envelope(row.queue, "normal", {"id": row.id, "task": row.kind}, bytes(row.body))
        dead_letters.add(self._ledger, envelope, envelope.body, "undecodable", why)
        self._database.write(
            lambda connection: connection.execute(sa.delete(outbox).where(outbox.c.position == row.position))
        )


_FREE = sa.or_(outbox.c.taken_until.is_(None), outbox.c.taken_until <= from_now())
_NOW = from_now(timedelta(milliseconds=1))  # ahead by what SQLite's clock leaves out


def _look(connection: sa.Connection) -> bool:
    """Whether there is anything. Looking takes no lock; on SQLite there is only one."""
    first = sa.select(outbox.c.position).where(_FREE).order_by(outbox.c.position).limit(1)
    return connection.execute(first).first() is not None


def _take(connection: sa.Connection, database: Database, token: str, limit: int, but: Sequence[str]) -> _Batch:
    """The first rows that nobody has and that no row outside goes before."""
    select = sa.select(*(outbox.c[name] for name in _READ), _NOW.label("now")).where(_FREE)
    if but:
        select = select.where(outbox.c.queue.not_in(list(but)))
    select = database.locked(select.order_by(outbox.c.position).limit(limit), skip=True)
    rows = list(connection.execute(select).all())
    if not rows:
        return _Batch(token, datetime.now(UTC))
    now, full = rows[0].now, len(rows) >= limit
    if keys := sorted({row.key for row in rows if row.key is not None}):
        mine = {row.position for row in rows}
        others = sa.select(outbox.c.key, outbox.c.position)
        others = others.where(database.among(outbox.c.key, keys), outbox.c.position <= rows[-1].position)
        first: dict[str, int] = {}
        for key, position in connection.execute(others):
            if position not in mine:
                first[key] = min(position, first.get(key, position))
        rows = [row for row in rows if row.key not in first or row.position < first[row.key]]
    if rows:
        change = {"taken_by": token, "taken_until": now + RESERVED}
        connection.execute(sa.update(outbox).where(_among(database, rows)).values(**change))
    return _Batch(token, now, rows, more=full and bool(rows))


def _let_go(
    connection: sa.Connection, database: Database, token: str, kept: Sequence[Any], done: Sequence[Any]
) -> None:
    """Take `done` out of the outbox, and let others have `kept`, as far as they are still this batch's."""
    mine = outbox.c.taken_by == token
    if done:
        connection.execute(sa.delete(outbox).where(mine, _among(database, done)))
    if kept:
        change = {"taken_by": None, "taken_until": None}
        connection.execute(sa.update(outbox).where(mine, _among(database, kept)).values(**change))


def _among(database: Database, rows: Sequence[Any]) -> sa.ColumnElement[bool]:
    positions = [row.position for row in rows]
    if database.dialect == "postgresql":
        return outbox.c.position == sa.func.any(sa.bindparam(None, positions, type_=sa.ARRAY(sa.BigInteger)))
    return outbox.c.position.in_(positions)


def _open(row: Any, until: datetime) -> _Entry:
    """Raises UndecodableMessage, and never anything else."""
    try:
        headers = json.loads(row.headers)
        if not isinstance(headers, dict):
            raise ValueError("it is no object")
    except ValueError as error:
        raise UndecodableMessage("undecodable", f"the headers {row.headers[:1000]!r}: {error}") from error
    envelope = Envelope(row.queue, row.priority, headers, bytes(row.body))
    job = waiting(envelope)
    if row.queue != DISPATCHER_QUEUE:
        if not row.track:
            return _Entry(row.position, envelope, None, None)
        job["due_at"] = until
    return _Entry(row.position, envelope, _policy(row.policy), job)


def _policy(text: str | None) -> Unique | None:
    if text is None:
        return None
    try:
        fields = json.loads(text)
        hold, quiet = (None if fields[name] is None else timedelta(seconds=fields[name]) for name in ("hold", "quiet"))
        return Unique(fields["policy"], frozenset(map(State, fields["states"])), hold, quiet)
    except (ValueError, LookupError, TypeError, OverflowError) as error:
        raise UndecodableMessage("undecodable", f"the policy {text[:1000]!r}: {error}") from error


def _enter(connection: sa.Connection, ledger: Database, batch: _Batch) -> None:
    """Enter the jobs in the ledger, and say in the batch which of them are to be sent."""
    batch.read()
    about = batch.about()
    gone = cancelled_before(connection, ledger, about) if about else set()
    asked = [entry for entry in batch.entries if entry.policy is not None and entry.envelope.id not in gone]
    rows: list[Row] = []
    for entry in batch.entries:
        if entry.row is not None and (entry.policy is None or entry.envelope.id in gone):
            if entry.envelope.id in gone:
                entry.row |= {"state": State.CANCELLED, "finished_at": datetime.now(UTC), "due_at": None}
            rows.append(entry.row)
    if rows:
        new = ledger.execute_many(connection, ledger.insert_ignore(jobs), rows)
        batch.plain = [row["id"] for row in rows if row["due_at"] == batch.until]
        if new < len(rows):
            batch.plain = _take_over(connection, ledger, batch)
    if asked:
        pairs = [(entry.envelope, entry.policy) for entry in asked if entry.policy is not None]
        made = Admissions.of(connection, ledger, pairs, batch.now, batch.until)
        batch.unique = [job_id for job_id, row in made.new.items() if row["due_at"] == batch.until]
        for entry, answer in zip(asked, made.answers, strict=True):
            if not answer.created and answer.job_id != entry.envelope.id:
                log.info("job %s is not sent: job %s stands for its key", entry.envelope.id, answer.job_id)


def _take_over(connection: sa.Connection, ledger: Database, batch: _Batch) -> list[str]:
    """Which of the jobs that the ledger has, some of them from before, are to be sent.

    One that waits there as it was entered is: a dispatcher died before it was sent, or whoever gave an id twice.
    """
    waits = (jobs.c.state == State.SCHEDULED, jobs.c.fence == 0, jobs.c.failures == 0, jobs.c.due_at <= batch.until)
    there = sa.update(jobs).where(ledger.among(jobs.c.id, batch.plain), *waits).values(due_at=batch.until)
    connection.execute(there)
    select = sa.select(jobs.c.id).where(reserved(ledger, batch.plain, batch.until))
    return list(connection.execute(select).scalars())
