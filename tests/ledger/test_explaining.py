"""Why a job isn't running: each answer in the situation it is about."""

from __future__ import annotations

import socket
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from support.ledgers import LEASE, Login, Note, Pay, Ring, change, claimed, end, message

from penstock.ledger.members import heartbeats
from penstock.ledger.queries import dead_letters
from penstock.ledger.queries.status import request_cancel
from penstock.ledger.rows.crashes import note_death
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import jobs, outbox, unique_keys, workers
from penstock.ledger.transitions import due
from penstock.ledger.transitions import lost as resending
from penstock.producers import Producer
from penstock.producers.explain import Explanation, explain, explain_key, waiting
from penstock.producers.explain.queue_position import MemoryPositions, QueuePosition
from penstock.producers.outbox import Outbox
from penstock.producers.senders.memory import MemoryBroker
from penstock.schemas import Job, Outcome, State
from penstock.schemas.wire.codec import Envelope, Message, decode, encode
from penstock.workers.dispatcher import due_jobs

HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)


class Quiet(Job, kind="explain.quiet", queue="notes", unique_by=("page",), unique="debounce", debounce=600):
    page: str


class Only(Job, kind="explain.only", queue="notes", unique_by=("n",), unique="reject"):
    n: int


class Hourly(Job, kind="explain.hourly", queue="notes", unique_by=("n",), unique="existing", unique_for=3600):
    n: int


class Timed(Job, kind="explain.timed", queue="notes", timeout=60): ...


KINDS = (
    "ledger.note",
    "ledger.pay",
    "ledger.ring",
    "ledger.login",
    *("explain.quiet", "explain.only", "explain.timed"),
)


def worker(
    ledger: Database,
    name: str = "w1",
    *,
    queues: tuple[str, ...] = ("notes",),
    kinds: tuple[str, ...] = KINDS,
    lease: timedelta = HOUR,
) -> None:
    served = dict.fromkeys(kinds, "notes")
    heartbeats.register(ledger, name, engine="celery", queues=queues, kinds=served, lease=lease)


def dispatcher(ledger: Database, name: str = "d1", *, lease: timedelta = HOUR) -> None:
    heartbeats.register(ledger, name, engine="dispatcher", queues=["dispatcher"], kinds={}, lease=lease)


def delayed(ledger: Database, job: Job | None = None, delay: timedelta = HOUR, **options: Any) -> str:
    envelope = encode(job or Note(), due_at=resending.clock(ledger) + delay, **options)
    due.schedule(ledger, [envelope])
    return str(envelope.id)


def sent(ledger: Database, job: Job | None = None, broker: MemoryBroker | None = None, **options: Any) -> Message:
    """What a dispatcher has handed to the broker."""
    broker = broker or MemoryBroker()
    delayed(ledger, job, -MINUTE, **options)
    due_jobs.send_due(ledger, broker)
    return decode(broker.sent[-1])


class Empty:
    """The positions of a broker that has lost everything."""

    def find(self, job_id: str, queue: str, priority: str) -> QueuePosition:
        return QueuePosition(False, 0)

    def close(self) -> None: ...


class At:
    """The positions of a broker that has a job here."""

    def __init__(self, position: QueuePosition) -> None:
        self.position = position

    def find(self, job_id: str, queue: str, priority: str) -> QueuePosition:
        return self.position

    def close(self) -> None: ...


def test_a_delayed_job_waits_for_its_time_and_its_dispatcher_is_named(ledger: Database) -> None:
    worker(ledger)
    dispatcher(ledger)
    job_id = delayed(ledger, Login(user="ada", password="s3cret"))
    explanation = explain(ledger, job_id)
    assert (explanation.job_id, explanation.state, explanation.advice) == (job_id, State.SCHEDULED, None)
    assert "it waits for its time" in explanation.because
    assert "(in 59 min)" in explanation.because
    assert "dispatcher d1 sends it then" in explanation.because
    assert explanation.facts["due_at"] > datetime.now(UTC)
    assert explanation.facts["kind"] == "ledger.login"
    assert "s3cret" not in str(explanation)
    assert "ada" not in str(explanation)


@pytest.mark.parametrize("gone", ["never", "dead", "stopped"])
def test_a_delayed_job_without_a_dispatcher_says_so(ledger: Database, gone: str) -> None:
    worker(ledger)
    if gone != "never":
        dispatcher(ledger, lease=-HOUR if gone == "dead" else HOUR)
    if gone == "stopped":
        heartbeats.sign_off(ledger, "d1")
    explanation = explain(ledger, delayed(ledger))
    assert "no dispatcher lives to send it" in explanation.because
    expected = {
        "never": "none was ever seen",
        "dead": "d1, was last seen",
        "stopped": "d1, stopped",
    }
    assert expected[gone] in explanation.because
    assert "penstock dispatcher" in str(explanation.advice)


def test_a_delayed_job_without_a_worker_for_it(ledger: Database) -> None:
    dispatcher(ledger)
    explanation = explain(ledger, delayed(ledger))
    assert "no live worker consumes queue 'notes'" in explanation.because
    assert "--queues notes" in str(explanation.advice)


def test_a_due_job_that_is_not_sent_says_how_many_go_first_and_where_to_look(
    ledger: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "_LATE", HOUR / 2)
    worker(ledger)
    dispatcher(ledger)
    for number in range(3):
        delayed(ledger, delay=-HOUR - number * MINUTE)
    soon = explain(ledger, delayed(ledger, delay=-MINUTE))
    assert "its time has come" in soon.because
    assert "dispatcher d1 is about to send it" in soon.because
    late = explain(ledger, delayed(ledger, delay=-50 * MINUTE))
    assert "dispatcher d1 lives and has not sent it; 3 are due before it" in late.because
    assert late.facts["due_before_it"] == 3
    assert "log" in str(late.advice)


def test_a_job_that_expires_before_its_time(ledger: Database) -> None:
    worker(ledger)
    dispatcher(ledger)
    job_id = delayed(ledger)
    change(ledger, job_id, expires_at=datetime.now(UTC) + MINUTE)
    assert "will then be discarded" in explain(ledger, job_id).because


def test_a_retry_says_until_when_and_after_which_error(ledger: Database) -> None:
    worker(ledger)
    dispatcher(ledger)
    note = message(Note())
    end(ledger, claimed(ledger, note), Outcome.RETRY, error="OSError: no route", due_at=datetime.now(UTC) + HOUR)
    explanation = explain(ledger, note.id)
    assert explanation.state == State.RETRYING
    assert "attempt 1 failed (OSError: no route); the next one is in retry until" in explanation.because
    assert (explanation.facts["failures"], explanation.facts["max_attempts"]) == (1, Note.kind().retry.max_attempts)


def test_a_snoozed_job_says_until_when(ledger: Database) -> None:
    dispatcher(ledger)
    note = message(Note())
    snoozed = {"error": "not yet there", "due_at": datetime.now(UTC) + HOUR}
    end(ledger, claimed(ledger, note), Outcome.SNOOZED, **snoozed)
    assert "its handler has snoozed it (not yet there) until" in explain(ledger, note.id).because


def test_a_debounced_job_says_that_it_is_put_off(ledger: Database, ledger_url: str) -> None:
    dispatcher(ledger)
    with Producer("redis://unused", sender=MemoryBroker(), database_url=ledger_url) as producer:
        handle = producer.enqueue(Quiet(page="1"))
    explanation = explain(ledger, handle.id)
    assert "it is debounced until" in explanation.because
    assert explanation.facts["holds_key_until"] == "it ends"


def test_a_job_in_its_queue_says_at_which_position(ledger: Database) -> None:
    worker(ledger)
    worker(ledger, "w2")
    broker = MemoryBroker()
    first, second = sent(ledger, broker=broker), sent(ledger, broker=broker)
    high = sent(ledger, broker=broker, priority="high")
    explanation = explain(ledger, second.id, MemoryPositions(broker))
    assert explanation.because == "it waits in queue 'notes' at position 3 (2 live workers)"
    assert (explanation.facts["position"], explanation.facts["waiting_in_queue"], explanation.advice) == (3, 3, None)
    assert sorted(explanation.facts["workers"]) == ["w1", "w2"]
    assert explain(ledger, high.id, MemoryPositions(broker)).facts["position"] == 1
    assert explain(ledger, first.id, MemoryPositions(broker)).facts["position"] == 2
    assert "where in it cannot be told" in explain(ledger, first.id).because


def test_an_unavailable_broker_is_a_fact_and_the_rest_is_explained(ledger: Database) -> None:
    worker(ledger)
    broker = MemoryBroker()
    job = sent(ledger, broker=broker)
    broker.down = True
    explanation = explain(ledger, job.id, MemoryPositions(broker))
    assert "it waits in queue 'notes'" in explanation.because
    assert "is down" in explanation.facts["broker"]


def test_a_queue_that_no_worker_consumes_and_who_consumes_what(ledger: Database) -> None:
    job = sent(ledger)
    nobody = explain(ledger, job.id)
    assert "no live worker consumes queue 'notes' (no worker lives; none was ever seen)" in nobody.because
    worker(ledger, "gone", queues=("notes", "a"), lease=-HOUR)
    worker(ledger, "other", queues=("ticks", "uploads"))
    worker(ledger, "note-taker", queues=("notes.taken", "not_es"))
    dispatcher(ledger)
    explanation = explain(ledger, job.id)
    assert "those that live consume not_es, notes.taken, ticks, uploads" in explanation.because
    assert "the last one, gone, was last seen" in explanation.because
    assert explanation.facts["workers"]["other"] == ["ticks", "uploads"]
    assert explanation.facts["last_worker"] == "gone"
    assert explanation.advice == "start one: penstock worker --queues notes --import …"
    worker(ledger)
    assert "no live worker" not in explain(ledger, job.id).because


def test_a_kind_that_no_live_worker_of_its_queue_handles(ledger: Database) -> None:
    worker(ledger, "w1", kinds=("ledger.pay",))
    worker(ledger, "elsewhere", queues=("ticks",))
    job = sent(ledger)
    explanation = explain(ledger, job.id)
    assert "no live worker of queue 'notes' has a handler for ledger.note (there are 1)" in explanation.because
    assert explanation.facts["without_handler"] == ["w1"]
    assert "--import" in str(explanation.advice)
    worker(ledger, "w2")
    some = explain(ledger, job.id)
    assert "it waits in queue" in some.because
    assert "1 of 2 workers of its queue have no handler" in str(some.advice)


def test_a_job_that_a_busy_worker_has_fetched(ledger: Database) -> None:
    worker(ledger)
    explanation = explain(ledger, sent(ledger).id, At(QueuePosition(True, 0, held_by="w1", silent=timedelta())))
    assert "worker w1 has fetched it" in explanation.because


def test_a_job_that_the_broker_has_lost_says_who_sends_it_again_and_when(ledger: Database) -> None:
    job = sent(ledger)
    assert "no dispatcher lives to send it again" in explain(ledger, job.id, Empty()).because
    dispatcher(ledger)
    unserved = explain(ledger, job.id, Empty())
    assert "once a worker runs its queue: no live worker consumes queue 'notes'" in unserved.because
    worker(ledger)
    explanation = explain(ledger, job.id, Empty())
    assert "the broker does not have it; dispatcher d1 sends it again, from" in explanation.because
    assert explanation.facts["resent_from"] == explanation.facts["sent_at"] + 2 * LEASE
    change(ledger, job.id, expires_at=datetime.now(UTC) - MINUTE)
    assert "it has expired" in explain(ledger, job.id, Empty()).because


def test_a_job_that_changes_while_the_broker_is_asked_is_explained_again(ledger: Database) -> None:
    worker(ledger)
    job = sent(ledger)

    class Meanwhile(Empty):
        def find(self, job_id: str, queue: str, priority: str) -> QueuePosition:
            claimed(ledger, job)
            return super().find(job_id, queue, priority)

    explanation = explain(ledger, job.id, Meanwhile())
    assert explanation.state == State.RUNNING
    assert "it runs since" in explanation.because


def test_a_running_job_says_where_and_how_far_it_is(ledger: Database) -> None:
    worker(ledger)
    timed = message(Timed())
    claimed(ledger, timed)
    heartbeats.beat(ledger, "w1", lease=HOUR, progress={timed.id: (3, 10, "pages")})
    explanation = explain(ledger, timed.id)
    assert "it runs since" in explanation.because
    assert f"on worker w1 (host {socket.gethostname()}, pid " in explanation.because
    assert "attempt 1, 3 of 10 done (pages); its deadline is" in explanation.because
    assert explanation.facts["progress"] == {"done": 3, "total": 10, "note": "pages"}
    assert explanation.facts["deadline"] == explanation.facts["started_at"] + MINUTE
    request_cancel(ledger, timed.id)
    assert "it was asked to stop" in explain(ledger, timed.id).because
    late = message(Timed())
    claimed(ledger, late)
    change(ledger, late.id, started_at=datetime.now(UTC) - HOUR)
    overdue = explain(ledger, late.id)
    assert "its deadline has passed" in overdue.because
    assert "penstock jobs cancel" in str(overdue.advice)


def dead_worker(ledger: Database, job: Job) -> str:
    """A job under a worker whose lease ended ten seconds ago."""
    worker(ledger, "dead")
    begun = message(job)
    claimed(ledger, begun, worker="dead")
    note_death(ledger, pid_of(ledger, "dead"), "SIGKILL", None)
    over = sa.update(workers).where(workers.c.name == "dead").values(lease_until=resending.clock(ledger) - LEASE / 1.5)
    ledger.write(lambda connection: connection.execute(over))
    return begun.id


def pid_of(ledger: Database, name: str) -> int:
    pid = sa.select(workers.c.pid).where(workers.c.name == name)
    return int(ledger.read(lambda connection: connection.execute(pid).scalar_one()))


def test_a_job_whose_worker_died_says_when_it_is_taken_over(ledger: Database) -> None:
    job_id = dead_worker(ledger, Note())
    alone = explain(ledger, job_id)
    assert "worker dead, which began attempt 1, is dead or silent (SIGKILL): its lease ended" in alone.because
    assert "but no live worker consumes queue 'notes'" in alone.because
    worker(ledger)
    dispatcher(ledger)
    held = At(QueuePosition(True, 0, held_by="dead", silent=timedelta(seconds=10)))
    before = resending.clock(ledger)
    explanation = explain(ledger, job_id, held)
    assert "another worker takes it over by" in explanation.because
    assert explanation.facts["taken_over_at"] >= before + timedelta(seconds=10)
    assert explanation.facts["ended"] == "SIGKILL"
    takeover = explain(ledger, job_id, At(QueuePosition(True, 0, held_by="w1", silent=timedelta())))
    assert "worker w1 has taken it over" in takeover.because
    lost = explain(ledger, job_id, Empty())
    assert "the broker does not have it, so a dispatcher sends it again" in lost.because
    assert lost.facts["resent_at"] == lost.facts["lease_until"] + 4 * LEASE


def test_a_job_that_must_not_run_twice_says_when_it_is_a_dead_letter(ledger: Database) -> None:
    job_id = dead_worker(ledger, Ring(number="1"))
    explanation = explain(ledger, job_id)
    assert "a dispatcher makes it a dead letter" in explanation.because
    assert "but no dispatcher lives" in explanation.because
    assert explanation.facts["buried_at"] == explanation.facts["lease_until"] + 4 * LEASE
    dispatcher(ledger)
    assert explain(ledger, job_id).advice is None


def test_a_dead_job_says_why_and_how_to_replay_it(ledger: Database) -> None:
    note = message(Note())
    fields = {"error": "ValueError: no", "reason": "failed", "detail": "ValueError: no (8 attempts)"}
    end(ledger, claimed(ledger, note), Outcome.DEAD, **fields)
    explanation = explain(ledger, note.id)
    assert "failed: ValueError: no (8 attempts)" in explanation.because
    assert f"penstock deadletters replay {note.id}" in str(explanation.advice)
    assert f"--group {explanation.facts['fingerprint']}" in str(explanation.advice)
    dead_letters.discard(ledger, dead_letters.Selection(ids=(note.id,)), actor="ada", reason="gone")
    assert "its letter was discarded" in explain(ledger, note.id).because


def test_a_job_that_is_in_doubt_says_where_to_decide(ledger: Database) -> None:
    pay = message(Pay(amount=1))
    end(ledger, claimed(ledger, pay), Outcome.DEAD, error="in doubt", reason="in_doubt")
    assert f"penstock jobs effects {pay.id} --confirm KEY" in str(explain(ledger, pay.id).advice)


def test_a_message_that_never_became_a_job_is_explained_by_its_dead_letter(ledger: Database) -> None:
    envelope = Envelope("notes", "normal", {"id": "m-1"}, b"rubbish")
    dead_letters.add(ledger, envelope, b"rubbish", "undecodable", "no body")
    explanation = explain(ledger, "m-1")
    assert explanation.state == State.DEAD
    assert "undecodable: no body" in explanation.because
    assert "penstock deadletters replay m-1" in str(explanation.advice)


@pytest.mark.parametrize(
    ("outcome", "expected", "advised"),
    [
        (Outcome.SUCCEEDED, "it succeeded", "--force"),
        (Outcome.DISCARDED, "it was discarded", "penstock jobs retry"),
        (Outcome.CANCELLED, "it was cancelled", "penstock jobs retry"),
    ],
)
def test_an_ended_job_says_when(ledger: Database, outcome: Outcome, expected: str, advised: str) -> None:
    pay = message(Pay(amount=1))
    end(ledger, claimed(ledger, pay), outcome)
    explanation = explain(ledger, pay.id)
    assert expected in explanation.because
    assert f"{explanation.facts['finished_at']:%H:%M:%SZ}" in explanation.because
    assert advised in str(explanation.advice)
    assert explanation.facts["worker"] == "w1"


def test_a_job_cancelled_before_it_was_seen_and_one_that_was_replaced(ledger: Database, ledger_url: str) -> None:
    request_cancel(ledger, "unseen-1", kind="ledger.note")
    unseen = explain(ledger, "unseen-1")
    assert "before a worker saw it" in unseen.because
    assert "penstock audit list --subject unseen-1" in str(unseen.advice)
    with Producer("redis://unused", sender=MemoryBroker(), database_url=ledger_url) as producer:
        first, second = [producer.enqueue(Note(), key="k", unique="replace") for _ in range(2)]
    assert f"it was cancelled {datetime.now(UTC):%Y}" in explain(ledger, first.id).because
    assert f"(replaced by job {second.id})" in explain(ledger, first.id).because


@pytest.fixture
def holding(ledger: Database, ledger_url: str) -> Callable[[Job], str]:
    def hold(job: Job) -> str:
        with Producer("redis://unused", sender=MemoryBroker(), database_url=ledger_url) as producer:
            return producer.enqueue(job).id

    return hold


def only_of(found: list[Explanation]) -> Explanation:
    [reason] = found
    return reason


def test_a_key_that_is_held_says_by_which_job_and_why_that_has_not_ended(
    ledger: Database, holding: Callable[[Job], str]
) -> None:
    worker(ledger)
    job_id = holding(Only(n=7))
    explanation = only_of(explain_key(ledger, "explain.only:n=7"))
    assert explanation.job_id == job_id
    assert explanation.because.startswith(
        "key 'explain.only:n=7' of explain.only is held by this job: it waits in queue"
    )
    assert f"penstock jobs cancel {job_id}" in str(explanation.advice)
    request_cancel(ledger, job_id)
    free = only_of(explain_key(ledger, "explain.only:n=7", kind="explain.only"))
    assert "is free; it was held by this job: it was cancelled" in free.because
    assert explain_key(ledger, "explain.only:n=7", kind="explain.hourly") == []
    assert explain_key(ledger, "explain.only:n=7", tenant="acme") == []
    assert explain_key(ledger, "EXPLAIN.only:n=7") == []


def test_a_key_that_is_held_for_a_period_is_held_by_what_succeeded(
    ledger: Database, holding: Callable[[Job], str]
) -> None:
    job_id = holding(Hourly(n=1))
    change(ledger, job_id, state=State.SUCCEEDED, finished_at=datetime.now(UTC))
    explanation = only_of(explain_key(ledger, "explain.hourly:n=1"))
    assert "is held by this job: it succeeded" in explanation.because
    assert explanation.facts["holds_key_until"] > datetime.now(UTC)
    ledger.write(lambda connection: connection.execute(sa.delete(jobs)))
    assert "is held by this job: the ledger has no record" in only_of(explain_key(ledger, "explain.hourly:n=1")).because
    over = sa.update(unique_keys).values(held_until=datetime.now(UTC) - MINUTE)
    ledger.write(lambda connection: connection.execute(over))
    assert "is free" in only_of(explain_key(ledger, "explain.hourly:n=1")).because


def test_a_job_without_a_record_may_wait_in_the_broker_or_be_gone(ledger: Database) -> None:
    broker = MemoryBroker()
    positions = MemoryPositions(broker)
    job_id = message(Note()).id
    explanation = explain(ledger, job_id, positions, queues=["notes"])
    assert explanation.state is None
    assert "the ledger has no record of it, its id was made" in explanation.because
    assert "either it waits in the broker, unseen by any worker, or it never came" in explanation.because
    assert "penstock queues list" in str(explanation.advice)
    sure = explain(ledger, job_id, Empty(), queues=["notes"])
    assert "nor has the broker (queues dispatcher, notes)" in sure.because
    assert "its id" not in explain(ledger, "order-1").because


def test_a_job_that_no_worker_has_seen_is_found_in_the_broker(ledger: Database) -> None:
    broker = MemoryBroker()
    positions = MemoryPositions(broker)
    first, second = encode(Note()), encode(Note())
    broker.send([first, second])
    unserved = explain(ledger, second.id, positions, queues=["notes"])
    assert unserved.because == "no live worker consumes queue 'notes'; it waits in queue 'notes' at position 2"
    assert "--queues notes" in str(unserved.advice)
    worker(ledger)
    explanation = explain(ledger, second.id, positions)
    assert "at position 2 (1 live worker)" in explanation.because
    assert (explanation.facts["queue"], explanation.facts["position"]) == ("notes", 2)


def test_a_job_in_the_outbox(ledger: Database) -> None:
    def write(connection: sa.Connection) -> list[str]:
        first = [Outbox().enqueue(connection, Note(), key="k"), Outbox().enqueue(connection, Note())]
        return [handle.id for handle in (*first, Outbox().enqueue(connection, Note(), key="k"))]

    first, _, last = ledger.write(write)
    explanation = explain(ledger, last)
    assert explanation.because.startswith("it waits in the outbox, written 20")
    assert "no dispatcher lives to send it (none was ever seen)" in explanation.because
    assert "penstock dispatcher" in str(explanation.advice)
    dispatcher(ledger)
    explanation = explain(ledger, last)
    assert explanation.because.endswith(", behind 1 of its key, whose order is kept")
    assert "the dispatcher's log says so" in str(explanation.advice)
    assert (explanation.state, explanation.facts["kind"], explanation.facts["queue"], explanation.facts["key"]) == (
        None,
        "ledger.note",
        "notes",
        "k",
    )
    take_over = sa.update(outbox).where(outbox.c.id == first).values(taken_until=datetime.now(UTC) + MINUTE)
    ledger.write(lambda connection: connection.execute(take_over))
    explanation = explain(ledger, first)
    assert (explanation.because.split("; ")[1], explanation.advice) == ("a dispatcher is sending it", None)


def test_a_delayed_job_on_its_way_to_the_ledger(ledger: Database) -> None:
    broker = MemoryBroker()
    envelope = encode(Note(), due_at=datetime.now(UTC) + HOUR)
    assert envelope.queue == "dispatcher"
    broker.send([envelope])
    explanation = explain(ledger, envelope.id, MemoryPositions(broker))
    assert "on its way to the ledger, through the dispatcher's queue; no dispatcher lives" in explanation.because
    dispatcher(ledger)
    assert explain(ledger, envelope.id, MemoryPositions(broker)).advice is None
