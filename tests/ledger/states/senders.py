"""Producers, dispatchers, and a broker that loses and repeats."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import strategies as st
from ledger.states.model import Crash, act, pick
from ledger.states.workers import Workers
from ledger.states.world import HOUR
from support.ledgers import Note, Pay, Ring
from support.unique_jobs import Debounce, Existing, Reject, Replace

from penstock.config.errors import BrokerUnavailable, DuplicateJob
from penstock.ledger.transitions import abandoned
from penstock.ledger.transitions import due as delays
from penstock.ledger.transitions import lost as resending
from penstock.schemas import Job, Outcome, State
from penstock.schemas.jobs.unique_policy import REPLACEABLE
from penstock.schemas.states import FINAL, WAITING
from penstock.schemas.wire.codec import unique_key
from penstock.workers.dispatcher import due_jobs

KEYS = ("a", "b")
SENDINGS = ["sends", "sends", "is down", "crashes before", "crashes after", "is overtaken", "is overtaken by a retry"]
numbers = st.integers(0, 50)


class Senders(Workers):
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
        """A delayed job goes to the dispatcher's queue."""
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
        # An overtaken job may be gone again.
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
        """Jobs without a record may be lost; nothing else."""
        self.wipes += 1
        for copy in self.broker.copies:
            job = self.model[copy.job_id]
            job.gone = job.gone or job.state is None
            job.missed = job.state not in FINAL
        self.broker.copies.clear()

    @act(2, when=lambda self: self._abandoned() or any(job.state == State.QUEUED for job in self.model.values()))
    def send_again(self) -> None:
        """Put back queued jobs, lost or not, and the jobs of dead workers: the evidence may be wrong."""
        queued = [job for job in self.model.values() if job.state == State.QUEUED]
        assert resending.put_back(self.ledger, resending.clock(self.ledger) + HOUR) == len(queued)
        for job in queued:
            job.wait(due=True)
        started = [job for job in self._abandoned() if job.delivery != "at_most_once"]
        lanes = [("notes", "normal"), ("uniq", "normal")]
        assert sum(resending.put_back_running(self.ledger, timedelta(), lane) for lane in lanes) == len(started)
        for job in started:
            job.fence, job.crashes = job.fence + 1, job.crashes + 1
            job.named = False
            if job.cancel_requested:
                job.end(State.CANCELLED)
                job.cancel_requested = False
            else:
                job.wait(due=True)

    @act(3, when=lambda self: any(copy.holder for copy in self.broker.copies), number=numbers)
    def lose_connection(self, number: int) -> None:
        """Deliveries of a living worker come again, to it or to the other one."""
        copy = pick([copy for copy in self.broker.copies if copy.holder], number)
        copy.holder, copy.deliveries = None, copy.deliveries + 1
