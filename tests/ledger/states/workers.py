"""Workers that claim, run, fail, freeze and die."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import strategies as st
from ledger.states.model import Held, Modelled, act, pick
from ledger.states.world import MAX_CRASHES, World
from support.ledgers import start_worker

from penstock.ledger import effects
from penstock.ledger.transitions.claim import Claim, ClaimRequest, asks_of_keys, claim, without_cancelled
from penstock.ledger.transitions.outcome import FenceLost
from penstock.schemas import Outcome, State
from penstock.schemas.states import FINAL, WAITING
from penstock.schemas.wire.codec import decode

numbers = st.integers(0, 50)


class Workers(World):
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
        answers = claim(self.ledger, [ClaimRequest(message, copy.deliveries > 1, MAX_CRASHES)], worker=worker)
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
        outcome=st.sampled_from([outcome for outcome in Outcome if outcome != Outcome.CANCELLED]),
        session=st.booleans(),
        acknowledged=st.booleans(),
    )
    def end(self, number: int, outcome: Outcome, session: bool, acknowledged: bool = True) -> None:
        """An attempt ends, that of a dead worker too, too late; or between the record and the acknowledgement."""
        held = pick(self.held, number)
        if held.charge == "found in doubt":
            outcome = Outcome.DEAD
        crashed = outcome == Outcome.CRASHED
        if crashed and held.claim.crashes + 1 >= MAX_CRASHES:
            outcome = Outcome.DEAD
        if (
            outcome in (Outcome.INTERRUPTED, Outcome.CRASHED)
            and self.model[held.claim.message.id].delivery == "at_most_once"
        ):
            outcome = Outcome.DEAD
        session = session and outcome == Outcome.SUCCEEDED
        self._end(held, outcome, session=session, acknowledged=acknowledged, crashed=crashed)

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
        when=lambda self: any(held.charge in (None, "started", "called") for held in self.held),
        number=numbers,
        not_done=st.booleans(),
    )
    def charge(self, number: int, not_done: bool) -> None:
        """The next step of `ctx.once("charge")` without an `ask`: begin, call, confirm. The dead may go on with it."""
        held = pick([held for held in self.held if held.charge in (None, "started", "called")], number)
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
                job.effect = held.charge = "started"
        elif held.charge == "started" and not_done:
            effects.withdraw(self.ledger, job_id, fence, "charge")
            job.effect = held.charge = None
        elif held.charge == "started":
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
