"""Every arrow between a job's states that the ledger declares is walked here, and every one walked is declared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from ledger.arrows.declared import Change, Watch, declared
from ledger.arrows.page import PAGE, updated
from support.ledgers import (
    Note,
    Ring,
    Tick,
    attempt_outcome,
    change,
    claim_one,
    claimed,
    empty,
    end,
    message,
    start_worker,
)
from support.unique_jobs import Debounce, Replace

from penstock.config.sections.retention import RetentionSettings
from penstock.ledger.retention.erasure import erase
from penstock.ledger.retention.pruning import Pruning
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import jobs
from penstock.ledger.transitions import due, lost, workflow_end
from penstock.ledger.transitions.abandoned import bury_abandoned
from penstock.ledger.transitions.bury import bury_message
from penstock.ledger.transitions.cancel import cancel_key, cancel_unseen, request_cancel
from penstock.ledger.transitions.claim import Claim
from penstock.ledger.transitions.enqueue import Admissions, enter
from penstock.ledger.transitions.outcome import record
from penstock.ledger.transitions.replay import replay_one, revive
from penstock.ledger.transitions.reschedule import reschedule
from penstock.producers.senders.memory import MemoryBroker
from penstock.producers.storage import Storage
from penstock.schemas import Job, Outcome, State
from penstock.schemas.jobs.adopted import AdoptedJob, adopt_kind
from penstock.schemas.states import FINAL, WAITING
from penstock.schemas.wire.codec import Envelope, decode, encode, unique_key
from penstock.workers.dispatcher import due_jobs

Adopted = adopt_kind(AdoptedJob, "arrows.task", __name__)
LONG_AGO = datetime.now(UTC) - timedelta(days=1)
SOON = datetime.now(UTC) + timedelta(hours=1)
NOT_BEGUN = (State.SCHEDULED, State.QUEUED, State.RETRYING)


class Stage:
    """A ledger in which walks begin, and what they come to."""

    def __init__(self, ledger: Database) -> None:
        self.ledger = ledger
        self.walked: dict[str, set[Change]] = {}

    def put(self, state: State, job: Job | None = None, key: str | None = None, **values: Any) -> Envelope:
        """Record a job in this state, due for long."""
        envelope = encode(job or Note(), key=key)
        due.schedule(self.ledger, [envelope])
        change(self.ledger, envelope.id, state=state, due_at=LONG_AGO, **values)
        return envelope

    @contextmanager
    def walk(self, file: str) -> Iterator[None]:
        """Note what the rows walk meanwhile."""
        watch = Watch()
        watch.restart(self.ledger)
        yield
        watch.look(self.ledger)
        assert watch.walked, f"{file}: nothing has changed"
        self.walked.setdefault(file, set()).update(watch.walked)

    def write(self, act: Callable[[sa.Connection], Any]) -> None:
        self.ledger.write(act)


def enqueues(stage: Stage) -> None:
    def enter_all(*entered: Job) -> None:
        envelopes = [encode(job, key=unique_key(job)) for job in entered]
        with stage.walk("transitions/enqueue.py"):
            stage.write(lambda connection: enter(connection, stage.ledger, envelopes, datetime.now(UTC)))

    enter_all(Note())
    enter_all(Replace(n=9), Replace(n=9))
    for number, state in enumerate(NOT_BEGUN):
        enter_all(Replace(n=number))
        stage.write(
            lambda connection, state=state: connection.execute(
                sa.update(jobs).where(jobs.c.state == State.SCHEDULED).values(state=state)
            )
        )
        enter_all(Replace(n=number))
    enter_all(Debounce(n=1))
    enter_all(Debounce(n=1))
    for state in sorted(WAITING):
        empty(stage.ledger)
        policy, now = Replace.kind().unique, datetime.now(UTC)
        assert policy is not None
        enter_all(Replace(n=1))
        stage.write(lambda connection, state=state: connection.execute(sa.update(jobs).values(state=state)))
        request = (encode(Replace(n=1), key=unique_key(Replace(n=1))), policy)
        admissions = stage.ledger.write(
            lambda connection, request=request, now=now: Admissions.admit(
                connection, stage.ledger, [request], now, SOON
            )
        )
        with stage.walk("transitions/enqueue.py"):
            stage.write(
                lambda connection, admissions=admissions: admissions.give_back(connection, stage.ledger, "uniq")
            )


def is_due(stage: Stage) -> None:
    envelope = encode(Note(), key="k")
    cancel_key(stage.ledger, "k")
    with stage.walk("transitions/due.py"):
        due.schedule(stage.ledger, [encode(Note()), envelope])
    empty(stage.ledger)
    stage.put(State.SCHEDULED)
    stage.put(State.RETRYING)
    stage.put(State.SCHEDULED, Tick())
    with stage.walk("transitions/due.py"):
        assert due_jobs.send_due(stage.ledger, MemoryBroker()) == 3
    request = due.HoldRequest(due.waiting(stage.put(State.QUEUED)), 0, False, "unknown_kind", "because")
    with stage.walk("transitions/due.py"):
        assert due.hold_back(stage.ledger, [request], worker="w1", grace=timedelta(hours=1)) == ["held"]


def claims(stage: Stage) -> None:
    with stage.walk("transitions/claim.py"):
        claimed(stage.ledger, message(Note()))
    for state in NOT_BEGUN:
        sent = stage.put(state)
        with stage.walk("transitions/claim.py"):
            claimed(stage.ledger, decode(sent))
    for cancel in (False, True):
        sent = stage.put(State.QUEUED)
        claimed(stage.ledger, decode(sent), worker="dead")
        change(stage.ledger, sent.id, cancel_requested=cancel)
        with stage.walk("transitions/claim.py"):
            claim_one(stage.ledger, decode(sent), worker="w2", again=True)
    for outcome in (Outcome.SUCCEEDED, Outcome.DISCARDED, Outcome.DEAD):
        first = message(Adopted())
        end(stage.ledger, claimed(stage.ledger, first), outcome)
        with stage.walk("transitions/claim.py"):
            claimed(stage.ledger, message(Adopted(), id=first.id, sent_at=SOON))


def ends(stage: Stage) -> None:
    outcomes = [outcome for outcome in Outcome if outcome != Outcome.CRASHED]
    for outcome in outcomes:
        claim = claimed(stage.ledger, message(Note()))
        with stage.walk("transitions/outcome.py"):
            assert end(stage.ledger, claim, outcome, due_at=SOON)
    for state in (None, State.SCHEDULED, State.CANCELLED):
        for outcome in outcomes:
            if outcome == Outcome.INTERRUPTED:
                continue
            sent = encode(Tick()) if state is None else stage.put(state, Tick())
            claim = Claim(decode(sent), 0, 1, 0, 0, datetime.now(UTC), tracked=False)
            # A success is kept for what it has enqueued.
            ended = attempt_outcome(claim, outcome, due_at=SOON, outgoing=[encode(Note())])
            with stage.walk("transitions/outcome.py"):
                assert record(stage.ledger, [ended], worker="w1") == [True]


def cancels(stage: Stage) -> None:
    ids = [encode(Note()).id, *(stage.put(state).id for state in NOT_BEGUN)]
    for job_id in ids:
        with stage.walk("transitions/cancel.py"):
            assert request_cancel(stage.ledger, job_id, kind="ledger.note") == State.CANCELLED
    sent = message(Note(), key="k")
    claimed(stage.ledger, sent)
    cancel_key(stage.ledger, "k")
    with stage.walk("transitions/cancel.py"):
        seen = (sent.id, "ledger.note", "k", None, sent.sent_at)
        assert cancel_unseen(stage.ledger, [seen], claimed=True) == {sent.id}


def buries(stage: Stage) -> None:
    for envelope in (encode(Note()), stage.put(State.SCHEDULED), stage.put(State.QUEUED)):
        with stage.walk("transitions/bury.py"):
            bury_message(stage.ledger, envelope, envelope.body, "no_handler", "because")


def is_abandoned(stage: Stage) -> None:
    start_worker(stage.ledger, "dead", lease=timedelta(seconds=-1))
    claimed(stage.ledger, message(Ring(number="1")), worker="dead")
    with stage.walk("transitions/abandoned.py"):
        assert len(bury_abandoned(stage.ledger)) == 1


def is_lost(stage: Stage) -> None:
    stage.put(State.QUEUED)
    with stage.walk("transitions/lost.py"):
        assert lost.put_back(stage.ledger, datetime.now(UTC)) == 1
    for cancel in (False, True):
        sent = message(Note())
        claimed(stage.ledger, sent, worker="dead")
        change(stage.ledger, sent.id, cancel_requested=cancel)
        with stage.walk("transitions/lost.py"):
            assert lost.put_back_running(stage.ledger, timedelta(), ("notes", "normal")) == 1


def reschedules(stage: Stage) -> None:
    for state in sorted(WAITING):
        envelope = stage.put(state)
        with stage.walk("transitions/reschedule.py"):
            reschedule(stage.ledger, envelope.id, SOON)


def revives(stage: Stage) -> None:
    for state in sorted(FINAL):
        job_id = stage.put(state).id
        with stage.walk("transitions/replay/revive.py"):
            stage.write(
                lambda connection, job_id=job_id: revive.revive(connection, stage.ledger, job_id, sorted(FINAL))
            )


def replays(stage: Stage) -> None:
    sent = message(Note())
    end(stage.ledger, claimed(stage.ledger, sent), Outcome.DEAD, reason="failed")
    with stage.walk("transitions/replay/plan.py"):
        replay_one(stage.ledger, sent.id, actor="ada")
    unread = encode(Note())
    bury_message(stage.ledger, unread, unread.body, "no_handler", "because")
    stage.write(lambda connection: connection.execute(sa.delete(jobs).where(jobs.c.id == unread.id)))
    with stage.walk("transitions/replay/plan.py"):
        replay_one(stage.ledger, unread.id, actor="ada")


def workflows_end(stage: Stage) -> None:
    ids = [stage.put(State.SCHEDULED).id for _ in range(3)]

    def end_all(connection: sa.Connection) -> None:
        workflow_end.succeed_own_jobs(connection, stage.ledger, {ids[0]: (None, None)})
        workflow_end.cancel_own_job(connection, ids[1])
        workflow_end.bury_own_job(connection, stage.ledger, ids[2], "ledger.note", "notes", "no")

    with stage.walk("transitions/workflow_end.py"):
        stage.write(end_all)


def no_storage() -> Storage:
    raise AssertionError("nothing of this lies in the storage")


def prunes(stage: Stage) -> None:
    for state in FINAL:
        stage.put(state, finished_at=LONG_AGO)
    late = datetime.now(UTC) + timedelta(days=3650)
    with stage.walk("retention/pruning.py"):
        Pruning(stage.ledger, RetentionSettings(dead=timedelta(days=1)), no_storage, now=late).run()


def erases(stage: Stage) -> None:
    for state in (*NOT_BEGUN, *FINAL):
        stage.put(state, key="ada", finished_at=datetime.now(UTC) if state in FINAL else None)
    for state in FINAL:
        stage.put(state, key="ada", finished_at=LONG_AGO)
    with stage.walk("retention/erasure.py"):
        erase(stage.ledger, {"key": "ada"}, no_storage, actor="bob")


WALKS = (
    enqueues,
    is_due,
    claims,
    ends,
    cancels,
    buries,
    is_abandoned,
    is_lost,
    reschedules,
    revives,
    replays,
    workflows_end,
    prunes,
    erases,
)


def changes(files: Mapping[str, set[Change]]) -> list[str]:
    return sorted(f"{file}: {source} → {target}" for file, arrows in files.items() for source, target in arrows)


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_what_is_walked_is_what_is_declared(ledger: Database) -> None:
    stage = Stage(ledger)
    for walk in WALKS:
        empty(ledger)
        walk(stage)
    drawn = {file: {(arrow.source, arrow.target) for arrow in arrows} for file, arrows in declared().items()}
    assert changes(stage.walked) == changes(drawn)


def test_every_transition_declares_its_arrows() -> None:
    files = declared()
    folder = PAGE.parents[1] / "schemas/penstock/ledger/transitions"
    entries = {f"transitions/{path.stem}" for path in folder.iterdir() if not path.name.startswith("__")}
    walked = {"/".join(file.removesuffix(".py").split("/")[:2]) for file in files if file.startswith("transitions/")}
    assert entries - {"transitions/selected"} == walked, "acts on many jobs go by the other transitions"


def test_the_page_shows_the_arrows_of_now() -> None:
    text = PAGE.read_text()
    assert updated(text) == text, "make states"
