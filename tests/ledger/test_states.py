"""The states of jobs, as a model in plain Python and in the real ledger: whatever happens, both say the same.

The machine plays producers, a broker that loses and repeats, dispatchers and workers that die between any two steps,
and people. After each step the ledger's rows are compared with the model's; when a run ends, everything is repaired and
must come to an end.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import invariant, run_state_machine_as_test
from ledger.arrows.declared import Watch, declared
from ledger.states.model import Broker
from ledger.states.people import People
from ledger.states.senders import Senders
from ledger.states.world import SESSIONS

from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import dead_letters, jobs
from penstock.ledger.transitions import due as delays
from penstock.producers import Producer
from penstock.schemas import Outcome, State
from penstock.schemas.jobs.unique_policy import REPLACEABLE
from penstock.schemas.states import FINAL, WAITING

EXAMPLES = int(os.environ.get("PENSTOCK_TEST_STATES_EXAMPLES", "40"))
STEPS = int(os.environ.get("PENSTOCK_TEST_STATES_STEPS", "40"))
"""More of both look deeper: `PENSTOCK_TEST_STATES_EXAMPLES=2000 PENSTOCK_TEST_STATES_STEPS=80`."""
NO_SYNC = "PRAGMA synchronous = OFF"
DECLARED = {(arrow.source, arrow.target) for arrows in declared().values() for arrow in arrows}


class States(Senders, People):
    """The processes and people of one run, with what must hold after each of their steps."""

    @invariant()
    def the_ledger_is_as_the_model_says(self) -> None:
        def read_ledger(connection: sa.Connection) -> tuple[Any, ...]:
            rows = {row.id: row for row in connection.execute(sa.select(jobs))}
            letters = sa.select(dead_letters.c.id).where(dead_letters.c.replayed_at.is_(None))
            return rows, set(connection.scalars(letters)), Counter(connection.scalars(sa.select(SESSIONS.c.job_id)))

        rows, letters, sessions = self.ledger.read(read_ledger)
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
        assert rows == {}, "jobs that were never enqueued"

    @invariant()
    def every_change_of_a_state_is_declared(self) -> None:
        assert self.watch.walked <= DECLARED, self.watch.walked - DECLARED

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


@pytest.mark.slow
@pytest.mark.timeout(600)  # it takes seconds; but once it fails, hypothesis looks for the shortest way there
def test_the_ledger_behaves_as_the_model(ledger: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    broker, watch, until_done = Broker(), Watch(), Database._until_done

    def watched(database: Database, transaction: Callable[[], Any]) -> Any:
        result = until_done(database, transaction)
        watch.look(database)
        return result

    monkeypatch.setattr(Database, "_until_done", watched)
    producer = Producer("redis://unused", sender=broker, database_url=ledger.url)
    if ledger.dialect == "sqlite":  # the power is not cut, and each commit would wait for the disk
        for database in (ledger, producer._ledger.open()):
            sa.event.listen(database.engine, "checkout", lambda connection, *_: connection.execute(NO_SYNC))
    SESSIONS.create(ledger.engine)
    try:
        run_state_machine_as_test(
            type("Here", (States,), {"ledger": ledger, "producer": producer, "broker": broker, "watch": watch}),
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
