"""Runs the jobs of a user's test: the executor over the test's ledger, one job at a time, in the caller's process.

`penstock.producers.testing` finds this by its entry point, since producers import no worker.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import sqlalchemy as sa

from penstock.config.errors import JobFailed, KindError, WaitTimeout
from penstock.config.settings import Settings
from penstock.ledger.schedules.rules import Schedule
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import dead_letters, jobs
from penstock.ledger.transitions.cancel import cancel_in
from penstock.ledger.transitions.due import envelope_of
from penstock.ledger.transitions.enqueue import enter
from penstock.ledger.transitions.outcome import AttemptOutcome
from penstock.ledger.workflows.read import due_workflows
from penstock.producers.senders.memory import MemoryBroker
from penstock.producers.storage import make_storage
from penstock.producers.testing import Ran
from penstock.producers.testing.rows import hand_over, mark_due_as_sent
from penstock.schemas.jobs.kind import DISPATCHER_QUEUE, PRIORITIES, registry
from penstock.schemas.states import Outcome, State
from penstock.schemas.wire.codec import Message, decode
from penstock.workers.brokers.memory import MemoryConsumer
from penstock.workers.dispatcher.schedules.declarations import read_schedules
from penstock.workers.executor.executor import Executor
from penstock.workers.executor.runtime.observers import Observer
from penstock.workers.handlers.discovery import discover_apps
from penstock.workers.handlers.django_project import add_task_handlers
from penstock.workers.handlers.registry import Handler, Handlers, handlers
from penstock.workers.handlers.resources import override
from penstock.workers.workflows.advance import Advanced, advance
from penstock.workers.workflows.definition import definitions

T = TypeVar("T")

NAME = "test"
"""The worker's, in the ledger."""


class Runner:
    """See `penstock.producers.testing.kit.Runner`.

    Arguments:
        opened_at: from when on schedules fire.
    """

    def __init__(self, settings: Settings, database: Database, opened_at: datetime) -> None:
        discover_apps()
        self._settings, self._database = settings, database
        self._overrides = ExitStack()
        self._overrides.enter_context(override(Database, database))
        rules = [rule for rule in read_schedules(settings) if rule.job is not None]
        self._schedules = [_Firing(rule, opened_at) for rule in rules]

    def replace(self, resource: type[T], value: T) -> None:
        self._overrides.enter_context(override(resource, value))

    def close(self) -> None:
        self._overrides.close()

    def drain(
        self, kinds: frozenset[str], *, raising: bool, limit: int, reached: datetime, travelled_at: datetime | None
    ) -> Iterator[Ran]:
        """Run one attempt after the other.

        Arguments:
            reached: until when schedules fire, by the test's clock.
            travelled_at: when the test travelled last. The wait for a retry is drawn by lot, and may be of no time at
                all; so that a test goes the same way each time, what failed since then waits for the next travel.
        """
        add_task_handlers()  # a test may import tasks at any time
        for schedule in self._schedules:
            self._database.write(functools.partial(schedule.fire, self._database, reached))
        run: _Run | None = None
        try:
            for _ in range(limit):
                self._move_workflows(raising)
                if (row := self._next(kinds, travelled_at)) is None:
                    return
                if raising:
                    _check_handler(row)
                run = run or _Run(self._settings, self._database)
                if (ran := run.attempt(row, raising)) is not None:
                    yield ran
            if (row := self._next(kinds, travelled_at)) is not None:
                raise WaitTimeout(
                    f"drain() has run {limit} attempts and more are due, such as a {row.kind}; does a job enqueue "
                    "itself? Else give drain() another limit"
                )
        finally:
            if run is not None:
                run.close()

    def _move_workflows(self, raising: bool) -> None:
        while definitions and (due := due_workflows(self._database)[0]):
            advanced = advance(
                self._database,
                due,
                open_storage=lambda: make_storage(self._settings.storage_url),
                max_bytes=self._settings.max_payload_bytes,
            )
            if raising:
                _raise_failure(advanced)

    def _next(self, kinds: frozenset[str], travelled_at: datetime | None) -> Any:
        lane = sa.case({name: number for number, name in enumerate(PRIORITIES)}, value=jobs.c.priority)
        due = [jobs.c.state == State.QUEUED, sa.and_(jobs.c.state == State.SCHEDULED, jobs.c.due_at <= _now())]
        if travelled_at is not None:
            due.append(sa.and_(jobs.c.state == State.RETRYING, jobs.c.due_at <= travelled_at))
        select = sa.select(jobs).where(sa.or_(*due)).order_by(lane, jobs.c.due_at, sa.literal_column("rowid")).limit(1)
        if kinds:
            select = select.where(jobs.c.kind.in_(kinds))
        return self._database.read(lambda connection: connection.execute(select).first())


def _raise_failure(advanced: Advanced) -> None:
    """Raise what the method of a step raised, or else the error of a workflow that has failed."""
    for workflow_id, raised in advanced.raised.items():
        raised.add_note(f"in drain(), by a step of workflow {workflow_id}")
        raise raised
    for workflow_id, error in advanced.failed.items():
        raise JobFailed(workflow_id, State.DEAD, error)


def _check_handler(row: Any) -> None:
    if handlers.find(registry[row.kind]) is None:
        raise KindError(
            f"drain(): kind {row.kind!r} has no handler here; import the module that has it, name the classes to run, "
            "as in drain(SendInvoice), or let it become a dead letter with raising=False"
        )


class _Firing:
    """A schedule, and when it fires next."""

    def __init__(self, rule: Schedule, opened_at: datetime) -> None:
        assert rule.times is not None
        assert rule.settings is not None
        self._rule, self._times, self._overlap = rule, rule.times, rule.settings.overlap
        self._next = rule.times.next(opened_at)
        self._last: str | None = None

    def fire(self, database: Database, reached: datetime, connection: sa.Connection) -> None:
        """Enqueue the jobs of the times until then, as a dispatcher does after an outage during the travel."""
        if self._next is None or self._next > reached:
            return
        times, self._next = self._times.choose(self._next, reached)
        one_waits = False
        for time in times:
            select = sa.select(jobs.c.state).where(jobs.c.id == self._last)
            state = connection.execute(select).scalar() if self._last else None
            unfinished = state is not None and not State(state).final
            if unfinished and (self._overlap == "skip" or (self._overlap == "queue" and one_waits)):
                continue
            one_waits = unfinished
            if unfinished and self._overlap == "replace":
                cancel_in(connection, database, str(self._last))
            [answer] = enter(connection, database, [self._rule.envelope(_now(), time)], _now())
            self._last = answer.job_id
            mark_due_as_sent(connection, [answer.job_id])


class _Run(Observer):
    """An executor, and its observer, from the first job of a drain to its last."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._database = database
        self._broker = MemoryBroker()
        self._raised: Exception | None = None
        self._outcome: AttemptOutcome | None = None
        self._refused = False
        watched = Handlers()
        for handler in handlers:
            watched.add(self._watched(handler))
        settings = settings.model_copy(update={"unknown_kind_grace": timedelta()})  # no other worker may know it
        self._executor = Executor(
            settings, database, name=NAME, concurrency=1, observers=[self], handlers=watched, registry=registry
        )
        self._executor.start()

    def close(self) -> None:
        self._executor.drain(0)

    def attempt(self, row: Any, raising: bool) -> Ran | None:
        """Run an attempt of a row's job. None: the job was not run, since it was cancelled."""
        self._raised = self._outcome = None
        self._refused = False
        envelope = envelope_of(row)
        self._database.write(functools.partial(hand_over, row=row))
        consumer = MemoryConsumer(self._broker, [row.queue])
        self._broker.send([envelope])
        self._executor.submit(consumer.fetch(1, 0.0))
        with self._broker.changed:
            self._broker.changed.wait_for(lambda: not consumer.unsettled)
            self._broker.lanes.clear()  # of released deliveries: the row says what follows
        if self._outcome is not None:
            if enqueued := [envelope.id for envelope in self._outcome.outgoing if envelope.queue != DISPATCHER_QUEUE]:
                self._database.write(functools.partial(mark_due_as_sent, ids=enqueued))
            return self._ran(self._outcome, raising)
        if self._refused:
            return None
        select = sa.select(dead_letters.c.detail).where(dead_letters.c.id == row.id)
        why = self._database.read(lambda connection: connection.execute(select).scalar())
        return Ran(decode(envelope).job, row.id, Outcome.DEAD, row.failures + 1, error=why)

    def _ran(self, outcome: AttemptOutcome, raising: bool) -> Ran:
        message = outcome.claim.message
        if raising and (outcome.traceback is not None or outcome.name == Outcome.DEAD):
            self._raise(outcome)
        result = None if outcome.result is None else json.loads(outcome.result)
        return Ran(message.job, message.id, outcome.name, outcome.claim.attempt, result, outcome.error)

    def _raise(self, outcome: AttemptOutcome) -> None:
        message, raised = outcome.claim.message, self._raised
        note = f"in drain(), at attempt {outcome.claim.attempt} of {message.job!r}"
        if raised is not None and (outcome.error or "").startswith(type(raised).__name__):
            raised.add_note(note)
            raise raised
        error = JobFailed(message.id, outcome.state, outcome.detail or outcome.error)
        error.add_note(note if outcome.traceback is None else f"{note}\n\n{outcome.traceback}")
        raise error

    def _watched(self, handler: Handler) -> Handler:
        """The handler, with a note of its exception, since the ledger keeps only text. One for a process runs
        in a thread: a child would not see what a test has patched or replaced."""
        function = handler.function

        @functools.wraps(function)
        async def call_async(*args: Any, **arguments: Any) -> Any:
            try:
                return await function(*args, **arguments)
            except Exception as error:
                self._raised = error
                raise

        @functools.wraps(function)
        def call(*args: Any, **arguments: Any) -> Any:
            try:
                return function(*args, **arguments)
            except Exception as error:
                self._raised = error
                raise

        watched: Callable[..., Any] = call_async if handler.mode == "async" else call
        return replace(handler, function=watched, mode="async" if handler.mode == "async" else "thread")

    # As an observer.

    def refused(self, message: Message, reason: str) -> None:
        self._refused = True

    def ended(self, outcome: AttemptOutcome) -> None:
        self._outcome = outcome


def _now() -> datetime:
    return datetime.now(UTC)
