"""People who cancel, retry and replay."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from ledger.states.model import act, pick
from ledger.states.world import World

from penstock.config.errors import InvalidState
from penstock.ledger.transitions import replay as replays
from penstock.ledger.transitions.cancel import request_cancel
from penstock.ledger.transitions.replay import retry
from penstock.schemas import State
from penstock.schemas.jobs.unique_policy import UNENDED
from penstock.schemas.states import FINAL

KEYS = ("a", "b")
numbers = st.integers(0, 50)


class People(World):
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
                retry(self.ledger, job.id, actor="ada")
            return
        if replay and job.state == State.DEAD:
            [verdict] = replays.replay_ids(self.ledger, [job.id], actor="ada")
            assert verdict.problem is None
        else:
            retry(self.ledger, job.id, actor="ada", force=True)
        job.wait(due=True)
        job.failures = job.crashes = 0
        job.cancel_requested = job.letter = job.named = False
        job.revived = True
