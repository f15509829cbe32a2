"""The ledger and its model side by side, and the questions that rules ask about both."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule
from ledger.arrows.declared import Watch
from ledger.states.model import ACTS, Broker, Copy, Held, Modelled
from support.ledgers import attempt_outcome, empty, start_worker
from support.unique_jobs import Existing, Reject

from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import jobs
from penstock.ledger.transitions.outcome import FenceLost, record, write_outcomes
from penstock.producers import Producer
from penstock.schemas import Job, Outcome, State
from penstock.schemas.jobs.kind import DISPATCHER_QUEUE
from penstock.schemas.jobs.unique_policy import REPLACEABLE, UNENDED
from penstock.schemas.states import FINAL, WAITING

HOUR = timedelta(hours=1)
MAX_CRASHES = 3
SESSIONS = sa.Table("states_effects", sa.MetaData(), sa.Column("job_id", sa.String(128), nullable=False))
"""Rows that handlers write in a transaction with their outcome."""


class World(RuleBasedStateMachine):
    """Runs the rules that `act` has collected, each on the ledger and on the model."""

    ledger: Database
    producer: Producer
    broker: Broker
    watch: Watch
    """Set by the test: they are the same for all runs."""

    def __init__(self) -> None:
        super().__init__()
        empty(self.ledger)
        self.ledger.write(lambda connection: connection.execute(sa.delete(SESSIONS)))
        self.watch.restart(self.ledger)
        self.broker.copies.clear()
        self.broker.then = "sends"
        self.model: dict[str, Modelled] = {}
        self.held: list[Held] = []
        self.holders: dict[str, str] = {}  # whose the key of a unique kind was last
        self.cancelled: dict[str, int] = {}  # keys, and when
        self.time = itertools.count()
        self.names = itertools.count(1)
        self.workers = ["", ""]
        self.finals: dict[str, State] = {}
        self.cancels = self.wipes = 0
        for slot in range(2):
            self._hire(slot)

    @rule(data=st.data())
    def something_happens(self, data: st.DataObject) -> None:
        act = data.draw(st.sampled_from([act for act in ACTS if act.when(self)]))
        act.function(self, **data.draw(st.fixed_dictionaries(act.chosen)))

    def _new(self, job: Job, job_id: str, key: str | None) -> Modelled:
        kind = job.kind()
        self.model[job_id] = Modelled(job_id, kind.name, kind.delivery, key, next(self.time))
        return self.model[job_id]

    def _is_quiet(self) -> bool:
        """Whether few jobs are under way: more would only keep each from getting far."""
        return len(self._under_way()) < 4

    def _under_way(self) -> list[Modelled]:
        return [job for job in self.model.values() if job.state not in FINAL and not job.gone]

    def _hire(self, slot: int) -> None:
        self.workers[slot] = f"w{next(self.names)}"
        start_worker(self.ledger, self.workers[slot], lease=HOUR)

    def _held_by(self, kind: type[Any]) -> Modelled | None:
        """The job that holds the key of a unique kind now."""
        holder = self.model.get(self.holders.get(kind.__name__, ""))
        states = UNENDED if kind in (Reject, Existing) else REPLACEABLE
        return holder if holder is not None and holder.state in states else None

    def _for_dispatcher(self) -> list[Copy]:
        return [copy for copy in self.broker.copies if copy.envelope.queue == DISPATCHER_QUEUE]

    def _waiting_copies(self) -> list[Copy]:
        waiting = [copy for copy in self.broker.copies if copy.holder is None]
        return [copy for copy in waiting if copy.envelope.queue != DISPATCHER_QUEUE]

    def _abandoned(self) -> list[Modelled]:
        running = [job for job in self.model.values() if job.state == State.RUNNING]
        return [job for job in running if job.worker not in self.workers]

    def _may_write(self, held: Held) -> bool:
        job = self.model[held.claim.message.id]
        return job.state == State.RUNNING and job.fence == held.claim.fence

    def _is_cancelled_key(self, job: Modelled) -> bool:
        return job.key is not None and job.enqueued < self.cancelled.get(job.key, -1)

    def _make_due(self, waiting: list[Modelled]) -> None:
        if waiting:
            where = self.ledger.among(jobs.c.id, [job.id for job in waiting])
            late = sa.update(jobs).where(where).values(due_at=datetime.now(UTC) - HOUR)
            self.ledger.write(lambda connection: connection.execute(late))
        for job in waiting:
            job.due, job.untouched = True, False

    def _expected_answer(self, job: Modelled, copy: Copy, fence: int) -> str:
        """Expected answer to a claim."""
        redelivered, alive = copy.deliveries > 1, job.worker in self.workers
        if job.state is None:
            return "cancelled" if self._is_cancelled_key(job) else "claimed"
        if job.state == State.CANCELLED:
            return "cancelled"
        if job.state in FINAL:
            return "ended"
        if fence < job.fence and (job.state in WAITING or (job.state == State.QUEUED and not job.named)):
            return "duplicate"
        if job.state == State.RUNNING:
            if job.delivery == "at_most_once" or (alive and not redelivered):
                return "duplicate"
            if alive and job.delivery == "once":
                return "held"
            return "cancelled" if job.cancel_requested else "claimed"
        return "claimed"

    def _model_cancelled_claim(self, job: Modelled) -> None:
        """Apply a claim that was refused as cancelled to the model."""
        if job.state is None:
            job.fence = 1
            job.end(State.CANCELLED)
        elif job.state == State.RUNNING:
            job.fence, job.crashes, job.cancel_requested = job.fence + 1, job.crashes + 1, False
            job.end(State.CANCELLED)

    def _model_cancel_key(self, key: str, but: Modelled | None = None) -> None:
        self.cancelled[key] = next(self.time)
        for job in self.model.values():
            if job.key == key and job is not but:
                if job.state == State.RUNNING:
                    job.cancel_requested = True
                elif job.state in UNENDED:
                    job.end(State.CANCELLED)
        if but is not None:
            but.cancel_requested = True  # seen as running; its worker then finds the key

    def _end(
        self,
        held: Held,
        outcome: Outcome,
        *,
        session: bool,
        reason: str | None = None,
        acknowledged: bool = True,
        crashed: bool = False,
    ) -> None:
        """Record how an attempt ended, and settle its message."""
        job = self.model[held.claim.message.id]
        later = outcome in (Outcome.RETRY, Outcome.SNOOZED, Outcome.CRASHED)
        end = attempt_outcome(held.claim, outcome, delay=HOUR if later else None, reason=reason, crashed=crashed)
        keeps = self._may_write(held)
        if session:
            assert self._commit(held, end) == keeps
        else:
            assert record(self.ledger, [end], worker=held.worker) == [keeps]
        self.held.remove(held)
        if held.copy in self.broker.copies and held.copy.holder == held.worker:
            if keeps and acknowledged and outcome != Outcome.INTERRUPTED:
                self.broker.copies.remove(held.copy)
            else:
                held.copy.holder, held.copy.deliveries = None, held.copy.deliveries + 1
        if not keeps:
            return
        job.crashes += crashed
        if outcome == Outcome.RETRY or (outcome == Outcome.DEAD and not held.claim.quarantine and not crashed):
            job.failures += 1
        if outcome == Outcome.SUCCEEDED:
            job.successes += 1
            job.sessions += session
        state = end.state
        if job.cancel_requested and state not in FINAL:
            state = State.CANCELLED
        job.cancel_requested = False
        missed = job.missed or held.copy not in self.broker.copies
        if state in FINAL:
            job.end(state)
        else:
            job.wait(due=False)
            job.state, job.missed = state, missed and state == State.QUEUED

    def _commit(self, held: Held, outcome: Any) -> bool:
        """The outcome in one transaction with an effect, as with `ctx.session`."""

        def record_with_session(connection: sa.Connection) -> None:
            connection.execute(sa.insert(SESSIONS).values(job_id=held.claim.message.id))
            [kept] = write_outcomes(connection, self.ledger, [outcome], held.worker)
            if not kept:
                raise FenceLost

        try:
            self.ledger.write(record_with_session)
        except FenceLost:
            return False
        return True
