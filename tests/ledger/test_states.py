"""The states of jobs, as a model in plain Python and in the real ledger: whatever happens, both say the same.

The machine plays producers, a broker that loses and repeats, dispatchers and workers that die between any two steps,
and people. After each step the ledger's rows are compared with the model's; when a run ends, everything is mended and
must come to an end.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from support.job_model import ACTS, Broker, Copy, Crash, Held, Modelled, act, pick
from support.ledgers import Note, Pay, Ring, attempt_outcome, empty, start_worker
from support.unique_jobs import Debounce, Existing, Reject, Replace

from penstock.config.errors import BrokerUnavailable, DuplicateJob, InvalidState
from penstock.ledger import effects
from penstock.ledger.queries import jobs as queries
from penstock.ledger.queries.status import request_cancel
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import dead_letters, jobs
from penstock.ledger.transitions import abandoned
from penstock.ledger.transitions import due as delays
from penstock.ledger.transitions import lost as resending
from penstock.ledger.transitions import replay as replays
from penstock.ledger.transitions.claim import Claim, Wanted, asks_of_keys, claim, without_cancelled
from penstock.ledger.transitions.outcome import FenceLost, record, write_outcomes
from penstock.producers import Producer
from penstock.schemas import Job, Outcome, State
from penstock.schemas.jobs.kind import DISPATCHER_QUEUE
from penstock.schemas.jobs.unique_policy import REPLACEABLE, UNENDED
from penstock.schemas.states import FINAL, WAITING
from penstock.schemas.wire.codec import decode, unique_key
from penstock.workers.dispatcher import due_jobs

HOUR = timedelta(hours=1)
MAX_CRASHES = 3
EXAMPLES = int(os.environ.get("PENSTOCK_TEST_STATES_EXAMPLES", "60"))
STEPS = int(os.environ.get("PENSTOCK_TEST_STATES_STEPS", "40"))
"""More of both look deeper: `PENSTOCK_TEST_STATES_EXAMPLES=2000 PENSTOCK_TEST_STATES_STEPS=80`."""
KEYS = ("a", "b")
NO_SYNC = "PRAGMA synchronous = OFF"
SESSIONS = sa.Table("states_effects", sa.MetaData(), sa.Column("job_id", sa.String(128), nullable=False))
"""What handlers write in a transaction with their outcome."""
SENDINGS = ["sends", "sends", "is down", "crashes before", "crashes after", "is overtaken", "is overtaken by a retry"]
numbers = st.integers(0, 50)


class States(RuleBasedStateMachine):
    """See the module."""

    ledger: Database
    producer: Producer
    broker: Broker
    """Set by the test: they are the same for all runs."""

    def __init__(self) -> None:
        super().__init__()
        empty(self.ledger)
        self.ledger.write(lambda connection: connection.execute(sa.delete(SESSIONS)))
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

    # Producers.

    @act(
        2,
        when=lambda self: self._is_quiet(),
        job=st.sampled_from([Note(), Pay(amount=1), Ring(number="1")]),
        key=st.sampled_from([None, *KEYS]),
    )
    def enqueue(self, job: Job, key: str | None) -> None:
        handle = self.producer.enqueue(job, key=key)
        self._new(job, handle.id, key)

    @act(
        1,
        when=lambda self: self._is_quiet(),
        job=st.sampled_from([Note(), Pay(amount=1)]),
        key=st.sampled_from([None, *KEYS]),
    )
    def enqueue_for_later(self, job: Job, key: str | None) -> None:
        """It goes to the dispatcher's queue."""
        handle = self.producer.enqueue(job, key=key, delay=HOUR)
        self._new(job, handle.id, key)

    @act(
        2,
        kind=st.sampled_from([Reject, Existing, Replace, Debounce]),
        then=st.sampled_from(["sends", "sends", "is down", "crashes before", "crashes after"]),
        later=st.booleans(),
    )
    def enqueue_unique(self, kind: type[Any], then: str, later: bool) -> None:
        job = kind(n=1)
        held = self._held_by(kind)
        self.broker.then = then
        was = set(self.model)
        number = f"u{next(self.time)}"
        refused, crashed = None, False
        handle: Any = None
        try:
            handle = self.producer.enqueue(job, id=number, delay=HOUR if later and kind is not Debounce else None)
        except DuplicateJob as error:
            refused = error.existing_id
        except Crash:
            crashed = True
        self.broker.then = "sends"
        assert refused == (held.id if kind is Reject and held is not None else None)
        if held is not None and kind in (Reject, Existing):
            assert not crashed, "nothing was to be sent"
            assert handle is None or (handle.id, handle.created) == (held.id, False)
            return
        if held is not None and kind is Debounce and held.untouched:
            assert (handle.id, handle.created) == (held.id, False)
            held.fence += 2
            return
        assert number not in was
        if held is not None:
            held.end(State.CANCELLED)
        new = self._new(job, number, unique_key(job))
        self.holders[kind.__name__] = number
        new.wait(due=False)
        if kind is Debounce:
            new.untouched = True
        elif not later:
            if then == "sends":
                new.state = State.QUEUED
            elif then == "is down":
                new.due = True
            assert crashed == then.startswith("crashes")

    # The dispatcher.

    @act(2, when=lambda self: self._for_dispatcher(), number=numbers, crashes=st.booleans())
    def take_in(self, number: int, crashes: bool) -> None:
        """A delayed job is recorded; a crash before the acknowledgement brings it again."""
        copy = pick(self._for_dispatcher(), number)
        delays.schedule(self.ledger, [copy.envelope])
        if not crashes:
            self.broker.copies.remove(copy)
        job = self.model[copy.job_id]
        if job.state is None:
            job.wait(due=False)
        if self._is_cancelled_key(job) and job.state in REPLACEABLE:
            job.end(State.CANCELLED)

    @act(2, when=lambda self: any(job.state in WAITING and not job.due for job in self.model.values()), number=numbers)
    def time_passes(self, number: int) -> None:
        """Until a job is due, or its reservation has ended."""
        job = pick([job for job in self.model.values() if job.state in WAITING and not job.due], number)
        self._make_due([job])

    @act(
        3,
        when=lambda self: any(job.due for job in self.model.values()),
        then=st.sampled_from(SENDINGS),
    )
    def send_due(self, then: str) -> None:
        due = {job.id: job for job in self.model.values() if job.due}
        claimed: set[str] = set()
        self.broker.then, before = then, len(self.broker.copies)

        def overtake() -> None:
            """A worker claims the last one, and even fails, before the dispatcher enters that it was sent."""
            waiting = self._waiting_copies()
            if then.startswith("is overtaken") and waiting:
                job, count = self.model[waiting[-1].job_id], len(self.held)
                fence = job.fence
                self.deliver(number=len(waiting) - 1, slot=0)
                if job.fence > fence:
                    claimed.add(job.id)
                if then == "is overtaken by a retry" and len(self.held) > count:
                    self.end(number=len(self.held) - 1, outcome=Outcome.RETRY, session=False, acknowledged=False)

        self.broker.overtaken = overtake
        if then == "sends" or then.startswith("is overtaken"):
            assert due_jobs.send_due(self.ledger, self.broker) == len(due)
        else:
            with pytest.raises(BrokerUnavailable if then == "is down" else Crash):
                due_jobs.send_due(self.ledger, self.broker)
        self.broker.overtaken = lambda: None
        self.broker.then = "sends"
        sent = [copy.envelope for copy in self.broker.copies[before:]]
        # One that was overtaken may be gone again.
        assert claimed | {copy.id for copy in sent} == set(() if then in ("is down", "crashes before") else due)
        for job in [due[job_id] for job_id in due.keys() - claimed]:
            for ours in [copy.headers["penstock"] for copy in sent if copy.id == job.id]:
                assert (ours.get("fence", 0), ours.get("attempt", 1)) == (job.fence, job.failures + 1)
            job.untouched = False
            job.due = then == "is down"
            if then == "sends" or then.startswith("is overtaken"):
                job.state = State.QUEUED

    @act(2, when=lambda self: self._abandoned())
    def bury(self) -> None:
        """`at_most_once` jobs of dead workers."""
        lost = {job.id for job in self._abandoned() if job.delivery == "at_most_once"}
        assert set(abandoned.bury_abandoned(self.ledger)) == lost
        for job_id in lost:
            job = self.model[job_id]
            job.end(State.DEAD)
            job.fence, job.crashes, job.failures = job.fence + 1, job.crashes + 1, job.failures

    # The broker loses and repeats.

    @act(1, when=lambda self: self.broker.copies and self.wipes < len(self.model) / 4)
    def wipe(self) -> None:
        """What was not on record may be lost; nothing else."""
        self.wipes += 1
        for copy in self.broker.copies:
            job = self.model[copy.job_id]
            job.gone = job.gone or job.state is None
            job.missed = job.state not in FINAL
        self.broker.copies.clear()

    @act(2, when=lambda self: self._abandoned() or any(job.state == State.QUEUED for job in self.model.values()))
    def send_again(self) -> None:
        """Put back what is queued, lost or not, and what a dead worker had begun: evidence may be wrong."""
        queued = [job for job in self.model.values() if job.state == State.QUEUED]
        assert resending.put_back(self.ledger, resending.clock(self.ledger) + HOUR) == len(queued)
        for job in queued:
            job.wait(due=True)
        begun = [job for job in self._abandoned() if job.delivery != "at_most_once"]
        lanes = [("notes", "normal"), ("uniq", "normal")]
        assert sum(resending.put_back_begun(self.ledger, timedelta(), lane) for lane in lanes) == len(begun)
        for job in begun:
            job.fence, job.crashes = job.fence + 1, job.crashes + 1
            job.named = False
            if job.cancel_requested:
                job.end(State.CANCELLED)
                job.cancel_requested = False
            else:
                job.wait(due=True)

    @act(3, when=lambda self: any(copy.holder for copy in self.broker.copies), number=numbers)
    def lose_connection(self, number: int) -> None:
        """What a living worker holds is delivered again, to it or to the other one."""
        copy = pick([copy for copy in self.broker.copies if copy.holder], number)
        copy.holder, copy.deliveries = None, copy.deliveries + 1

    # Workers.

    @act(
        6,
        when=lambda self: self._waiting_copies(),
        number=numbers,
        slot=st.integers(0, 1),
        key_is_cancelled_meanwhile=st.booleans(),
        acknowledged=st.booleans(),
    )
    def deliver(
        self, number: int, slot: int, key_is_cancelled_meanwhile: bool = False, acknowledged: bool = True
    ) -> None:
        """A worker gets a message and claims its job, as the executor does; an early acknowledgement may be lost."""
        copy, worker = pick(self._waiting_copies(), number), self.workers[slot]
        job, message = self.model[copy.job_id], decode(copy.envelope)
        for held in self.held:
            if held.worker == worker and held.claim.message.id == job.id:  # the executor does not ask then
                if message.fence > held.claim.message.fence:
                    return
                if copy.deliveries > 1:
                    held.copy, copy.holder = copy, worker
                else:
                    self.broker.copies.remove(copy)
                return
        expected = self._expected_answer(job, copy, message.fence)
        answers = claim(self.ledger, [Wanted(message, copy.deliveries > 1, MAX_CRASHES)], worker=worker)
        if job.state is None and job.key is not None and key_is_cancelled_meanwhile:
            assert self.producer.cancel(key=job.key) is not None
            self._model_cancel_key(job.key, but=job)
            expected = "cancelled"
        if asks_of_keys(answers):
            answers = without_cancelled(self.ledger, answers)
        [answer] = answers
        assert ("claimed" if isinstance(answer, Claim) else answer.reason) == expected, (answer, expected)
        if expected == "held":
            return  # it asks again when the other's lease has ended
        if expected != "claimed":
            self.broker.copies.remove(copy)
            if expected == "cancelled":
                self._model_cancelled_claim(job)
            return
        assert isinstance(answer, Claim)
        if job.state == State.RUNNING:
            job.crashes += 1
        job.fence, job.state, job.worker, job.due, job.missed = job.fence + 1, State.RUNNING, worker, False, False
        job.untouched, job.named = False, True
        assert (answer.fence, answer.attempt) == (job.fence, job.failures + 1)
        assert (answer.failures, answer.crashes) == (job.failures, job.crashes)
        assert answer.quarantine == (job.crashes >= MAX_CRASHES)
        if job.delivery != "at_most_once":
            copy.holder = worker
        elif acknowledged:
            self.broker.copies.remove(copy)
        else:
            copy.deliveries += 1
        held = Held(answer, worker, copy)
        self.held.append(held)
        if answer.quarantine:
            self._end(held, Outcome.DEAD, session=False, reason="crashed")

    @act(
        4,
        when=lambda self: self.held,
        number=numbers,
        outcome=st.sampled_from(
            [outcome for outcome in Outcome if outcome not in (Outcome.CRASHED, Outcome.CANCELLED)]
        ),
        session=st.booleans(),
        acknowledged=st.booleans(),
    )
    def end(self, number: int, outcome: Outcome, session: bool, acknowledged: bool = True) -> None:
        """An attempt ends, that of a dead worker too, too late; or between the record and the acknowledgement."""
        held = pick(self.held, number)
        if held.charge == "found in doubt":
            outcome = Outcome.DEAD
        if outcome == Outcome.INTERRUPTED and self.model[held.claim.message.id].delivery == "at_most_once":
            outcome = Outcome.DEAD
        self._end(held, outcome, session=session and outcome == Outcome.SUCCEEDED, acknowledged=acknowledged)

    @act(
        2,
        when=lambda self: any(self.model[held.claim.message.id].cancel_requested for held in self.held),
        number=numbers,
    )
    def stop_cancelled(self, number: int) -> None:
        """A worker learns that a job of its was cancelled."""
        cancelled = [held for held in self.held if self.model[held.claim.message.id].cancel_requested]
        self._end(pick(cancelled, number), Outcome.CANCELLED, session=False)

    @act(
        5,
        when=lambda self: any(held.charge in (None, "begun", "called") for held in self.held),
        number=numbers,
        not_done=st.booleans(),
    )
    def charge(self, number: int, not_done: bool) -> None:
        """The next step of `ctx.once("charge")` without an `ask`: begin, call, confirm. The dead may go on with it."""
        held = pick([held for held in self.held if held.charge in (None, "begun", "called")], number)
        job_id, fence = held.claim.message.id, held.claim.fence
        job = self.model[job_id]
        if held.charge is None and not self._may_write(held):
            with pytest.raises(FenceLost):
                effects.begin(self.ledger, job_id, fence, "charge")
            self.held.remove(held)
        elif held.charge is None:
            effect = effects.begin(self.ledger, job_id, fence, "charge")
            assert (effect is None) == (job.effect is None)
            if effect is not None:
                assert effect.done == (job.effect == "done")
                held.charge = "done" if effect.done else "found in doubt"
            else:
                job.effect = held.charge = "begun"
        elif held.charge == "begun" and not_done:
            effects.withdraw(self.ledger, job_id, fence, "charge")
            job.effect = held.charge = None
        elif held.charge == "begun":
            job.charges, held.charge = job.charges + 1, "called"
        else:
            effects.confirm(self.ledger, job_id, fence, "charge", None)
            job.effect = held.charge = "done"

    @act(3, when=lambda self: any(held.worker in self.workers for held in self.held), number=numbers)
    def die(self, number: int) -> None:
        """Or fall silent: its lease ends and its messages are delivered again. Its claims stay: it may only sleep."""
        worker = pick([held.worker for held in self.held if held.worker in self.workers], number)
        slot = self.workers.index(worker)
        start_worker(self.ledger, worker, lease=timedelta(seconds=-1))
        for copy in self.broker.copies:
            if copy.holder == worker:
                copy.holder, copy.deliveries = None, copy.deliveries + 1
        self._hire(slot)

    @act(
        3,
        when=lambda self: self._under_way(),
        number=numbers,
        slot=st.integers(0, 1),
        outcome=st.sampled_from([Outcome.SUCCEEDED, Outcome.RETRY, Outcome.INTERRUPTED, Outcome.DEAD]),
        steps=st.integers(1, 6),
    )
    def go_on(self, number: int, slot: int, outcome: Outcome, steps: int) -> None:
        """A job takes its usual next steps: left to chance, few would get far."""
        job = pick(self._under_way(), number)
        for _ in range(steps):
            self._step(job, slot, outcome)

    def _step(self, job: Modelled, slot: int, outcome: Outcome) -> None:
        held = [index for index, held in enumerate(self.held) if held.claim.message.id == job.id]
        unread = [index for index, copy in enumerate(self._for_dispatcher()) if copy.job_id == job.id]
        copies = [index for index, copy in enumerate(self._waiting_copies()) if copy.job_id == job.id]
        if job.state in FINAL:
            return
        if job.due:
            self.send_due(then="sends")
        elif job.state in WAITING:
            self._make_due([job])
        elif held:
            self.end(number=held[-1], outcome=outcome, session=True)
        elif unread:
            self.take_in(number=unread[0], crashes=False)
        elif copies:
            self.deliver(number=copies[0], slot=slot)

    # People.

    @act(2, when=lambda self: self.cancels < len(self.model), number=numbers)
    def cancel(self, number: int) -> None:
        self.cancels += 1
        job = pick(list(self.model.values()), number)
        if job.state in FINAL:
            with pytest.raises(InvalidState):
                request_cancel(self.ledger, job.id, kind=job.kind)
            return
        state = request_cancel(self.ledger, job.id, kind=job.kind)
        if job.state == State.RUNNING:
            job.cancel_requested = True
        else:
            job.unread = job.state is None
            job.end(State.CANCELLED)
        assert state == job.state

    @act(
        1,
        when=lambda self: any(job.key in KEYS and job.state not in FINAL for job in self.model.values()),
        key=st.sampled_from(KEYS),
    )
    def cancel_key(self, key: str) -> None:
        waiting = [job.id for job in self.model.values() if job.key == key and job.state in UNENDED]
        assert self.producer.cancel(key=key) == sorted(waiting)
        self._model_cancel_key(key)

    @act(
        2,
        when=lambda self: any(job.state in FINAL for job in self.model.values()),
        number=numbers,
        replay=st.booleans(),
    )
    def try_again(self, number: int, replay: bool) -> None:
        """`jobs retry --force`, or `deadletters replay` of one that is dead."""
        job = pick([job for job in self.model.values() if job.state in FINAL], number)
        if job.unread:
            with pytest.raises(InvalidState):
                queries.retry(self.ledger, job.id, actor="ada")
            return
        if replay and job.state == State.DEAD:
            [verdict] = replays.replay(self.ledger, [job.id], actor="ada")
            assert verdict.problem is None
        else:
            queries.retry(self.ledger, job.id, actor="ada", force=True)
        job.wait(due=True)
        job.failures = job.crashes = 0
        job.cancel_requested = job.letter = job.named = False
        job.revived = True

    # What always holds.

    @invariant()
    def the_ledger_is_as_the_model_says(self) -> None:
        def read(connection: sa.Connection) -> tuple[Any, ...]:
            rows = {row.id: row for row in connection.execute(sa.select(jobs))}
            letters = sa.select(dead_letters.c.id).where(dead_letters.c.replayed_at.is_(None))
            return rows, set(connection.scalars(letters)), Counter(connection.scalars(sa.select(SESSIONS.c.job_id)))

        rows, letters, sessions = self.ledger.read(read)
        for job in self.model.values():
            row = rows.pop(job.id, None)
            assert (row is None) == (job.state is None), job
            if row is None:
                continue
            real = (row.state, row.fence, row.failures, row.crashes, row.cancel_requested)
            assert real == (job.state, job.fence, job.failures, job.crashes, job.cancel_requested), (job, row)
            assert job.state != State.RUNNING or row.worker == job.worker
            assert job.state != State.QUEUED or (row.worker is not None) == job.named
            assert (job.id in letters) == job.letter, job
            assert sessions[job.id] == job.sessions, job
        assert rows == {}, "jobs that nobody enqueued"

    @invariant()
    def at_most_one_claim_can_record(self) -> None:
        for job in self.model.values():
            claims = [held for held in self.held if held.claim.message.id == job.id and self._may_write(held)]
            assert len(claims) <= 1, claims

    @invariant()
    def what_has_ended_stays_so_unless_a_person_tries_it_again(self) -> None:
        for job in self.model.values():
            if (final := self.finals.get(job.id)) is not None:
                assert job.state == final or job.revived, (final, job)
            job.revived = False
            if job.state in FINAL:
                assert job.state is not None
                self.finals[job.id] = job.state
            else:
                self.finals.pop(job.id, None)

    @invariant()
    def effects_happen_once(self) -> None:
        for job in self.model.values():
            assert job.charges <= 1, job
            assert job.sessions <= job.successes, job

    @invariant()
    def no_job_is_out_of_reach(self) -> None:
        copies = {copy.job_id for copy in self.broker.copies}
        alive = {held.claim.message.id for held in self.held if held.worker in self.workers and self._may_write(held)}
        for job in self.model.values():
            rescued = job.delivery == "at_most_once" and job.state == State.RUNNING
            waits = job.state in WAITING or job.state in FINAL
            assert waits or rescued or job.missed or job.gone or job.id in copies or job.id in alive, job

    def teardown(self) -> None:
        if sys.exc_info()[0] is None:  # a step has failed otherwise, and is what counts
            self._all_ends()

    def _all_ends(self) -> None:
        """Mend everything, and let everything end."""
        for _ in range(40):
            for held in list(self.held):
                self._end(held, Outcome.DEAD if held.charge == "found in doubt" else Outcome.SUCCEEDED, session=False)
            self.send_again()
            self.bury()
            while listed := self._for_dispatcher():
                delays.schedule(self.ledger, [listed[0].envelope])
                self.broker.copies.remove(listed[0])
                job = self.model[listed[0].job_id]
                if job.state is None:
                    job.wait(due=False)
                if self._is_cancelled_key(job) and job.state in REPLACEABLE:
                    job.end(State.CANCELLED)
            self._make_due([job for job in self.model.values() if job.state in WAITING and not job.due])
            if any(job.due for job in self.model.values()):
                self.send_due(then="sends")
            for _ in range(len(self._waiting_copies())):
                if self._waiting_copies():
                    self.deliver(number=0, slot=0)
            if all(job.state in FINAL or job.gone for job in self.model.values()):
                break
        self.the_ledger_is_as_the_model_says()
        left = [job for job in self.model.values() if job.state not in FINAL and not job.gone]
        assert left == [], "jobs without an end"

    # The model.

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
        """What a claim comes to."""
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
        """A claim was refused as cancelled; what it changes besides."""
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
        self, held: Held, outcome: Outcome, *, session: bool, reason: str | None = None, acknowledged: bool = True
    ) -> None:
        """Record how an attempt ended, and settle its message."""
        job = self.model[held.claim.message.id]
        later = outcome in (Outcome.RETRY, Outcome.SNOOZED)
        end = attempt_outcome(held.claim, outcome, delay=HOUR if later else None, reason=reason)
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
        if outcome == Outcome.RETRY or (outcome == Outcome.DEAD and not held.claim.quarantine):
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

        def write(connection: sa.Connection) -> None:
            connection.execute(sa.insert(SESSIONS).values(job_id=held.claim.message.id))
            [kept] = write_outcomes(connection, self.ledger, [outcome], held.worker)
            if not kept:
                raise FenceLost

        try:
            self.ledger.write(write)
        except FenceLost:
            return False
        return True


@pytest.mark.slow
@pytest.mark.timeout(600)  # it takes seconds; but once it fails, hypothesis looks for the shortest way there
def test_the_ledger_behaves_as_the_model(ledger: Database) -> None:
    broker = Broker()
    producer = Producer("redis://unused", sender=broker, database_url=ledger.url)
    if ledger.dialect == "sqlite":  # nobody cuts the power, and each commit would wait for the disk
        for database in (ledger, producer._ledger.open()):
            sa.event.listen(database.engine, "checkout", lambda connection, *_: connection.execute(NO_SYNC))
    SESSIONS.create(ledger.engine)
    try:
        run_state_machine_as_test(
            type("Here", (States,), {"ledger": ledger, "producer": producer, "broker": broker}),
            settings=settings(
                max_examples=EXAMPLES if ledger.dialect == "sqlite" else EXAMPLES // 5,
                stateful_step_count=STEPS,
                deadline=None,
                derandomize="CI" in os.environ,
                print_blob=True,
                suppress_health_check=list(HealthCheck),
                phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
            ),
        )
    finally:
        SESSIONS.drop(ledger.engine)
        producer.close()
