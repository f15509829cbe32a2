"""Deliveries that cannot run, come twice, are released or crash their worker."""

from __future__ import annotations

import threading
import time
from datetime import timedelta
from typing import Any, cast

import pytest
from support.polling import WAIT_SECONDS, until
from workers.executor.bench import Add, AtMostOnce, Bench, Do, DoInThread, Once, Seen, Untracked, gate, seen

from penstock.config.supervision import faults
from penstock.ledger.rows.attempts import history
from penstock.ledger.sql.tables import dead_letters, held_jobs, jobs
from penstock.ledger.transitions import due
from penstock.ledger.transitions.claim import Claim, claim
from penstock.ledger.transitions.outcome import AttemptOutcome
from penstock.schemas import Job
from penstock.schemas.wire.codec import Envelope, Message, encode
from penstock.workers.brokers.memory import MemoryConsumer
from penstock.workers.executor.runtime.observers import Observer, Observers


class NoHandler(Job, kind="ex.nohandler", queue="ex"): ...


@pytest.mark.parametrize(
    ("envelope", "reason"),
    [
        (Envelope("ex", "normal", {"task": "ex.none", "id": "u1"}, b"[[],{},{}]"), "unknown_kind"),
        (Envelope("ex", "normal", {"task": "ex.add", "id": "u2"}, b'[[],{"a":1},{}]'), "invalid_payload"),
        (Envelope("ex", "normal", {"task": "ex.add", "id": "u3"}, b"\x00\xff"), "undecodable"),
        (Envelope("ex", "normal", {}, b"rubbish"), "undecodable"),
        (encode(NoHandler(), id="u4"), "no_handler"),
    ],
)
def test_a_message_that_cannot_run_becomes_a_dead_letter_with_its_bytes(
    bench: Bench, envelope: Envelope, reason: str
) -> None:
    bench.worker()
    bench.broker.send([envelope])
    until(bench.idle)
    [letter] = bench.rows(dead_letters)
    assert letter.reason == reason
    assert letter.raw == envelope.body
    if envelope.id:
        assert bench.producer.handle(envelope.id).status().state == "dead"


def test_a_kind_that_is_not_tracked_leaves_only_its_failures(bench: Bench) -> None:
    bench.worker()
    bench.producer.enqueue(Untracked())
    until(bench.idle)
    assert bench.rows(jobs) == []
    status = bench.run(Untracked(what="fail"))
    assert (status.state, status.failures) == ("retrying", 1)
    bench.broker.send([encode(Untracked(), id=status.id, attempt=2, fence=1)])
    until(lambda: bench.producer.handle(status.id).status().state == "succeeded")


def test_a_duplicate_of_a_finished_job_is_not_run_again(bench: Bench) -> None:
    bench.worker()
    envelope = encode(Once(name="pay"))
    bench.broker.send([envelope])
    until(lambda: seen == ["pay"] and bench.idle())
    bench.broker.send([envelope, envelope])
    until(bench.idle)
    assert seen == ["pay"]


def test_a_duplicate_of_a_running_job_is_dropped_and_a_redelivery_of_it_is_settled_with_it(bench: Bench) -> None:
    worker = bench.worker()
    envelope = encode(DoInThread(what="gate"))
    bench.broker.send([envelope])
    handle = bench.producer.handle(envelope.id)
    until(lambda: handle.status().state == "running")
    bench.broker.send([envelope])
    until(lambda: len(worker.consumer.unsettled) == 1 and not bench.broker.depths(["ex"])["ex"])  # type: ignore[attr-defined]
    worker.consumer.die()  # type: ignore[attr-defined]  # the connection is lost and opened again
    until(lambda: len(worker.consumer.unsettled) == 1)  # type: ignore[attr-defined]
    gate.set()
    assert handle.wait(WAIT_SECONDS).state == "succeeded"
    until(bench.idle)
    assert len(bench.rows(history)) == 1


def test_an_observer_that_fails_harms_no_job(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    class Failing(Observer):
        def received(self, message: Message) -> None:
            raise RuntimeError("received")

        def started(self, claim: Claim) -> None:
            raise RuntimeError("started")

        def ended(self, outcome: AttemptOutcome) -> None:
            raise RuntimeError("ended")

    worker = bench.worker(start=False)
    worker.executor.observers.append(Failing())
    before = faults["observer failed"]
    worker.start()
    assert bench.run(Add(a=1, b=2)).result == {"sum": 3}
    until(lambda: faults["observer failed"] == before + 3)
    assert [record.message for record in caplog.records if "Failing" in record.message] == [
        f"Failing.{event} failed" for event in ("received", "started", "ended")
    ]


def test_observers_are_notified_of_the_events_that_they_override_alone() -> None:
    notified: list[object] = []

    class Half(Observer):
        def started(self, claim: Claim) -> None:
            notified.append(claim)

    observers = Observers([Half()])
    observers.append(Observer())
    observers.received(cast("Message", None))
    observers.started(cast("Claim", 1))
    assert notified == [1]


def test_an_at_most_once_job_is_acknowledged_before_it_runs(bench: Bench) -> None:
    worker = bench.worker()
    bench.producer.enqueue(AtMostOnce(name="shot"))
    until(lambda: seen == ["shot"])
    assert not worker.consumer.unsettled  # type: ignore[attr-defined]


def test_draining_finishes_what_runs_and_gives_back_the_rest(bench: Bench) -> None:
    worker = bench.worker(concurrency=1)
    running = bench.producer.enqueue(DoInThread(what="gate"))
    until(lambda: running.status().state == "running")
    waiting = [bench.producer.enqueue(Seen(name=str(number))) for number in range(3)]
    stopper = threading.Thread(target=worker.stop, args=(WAIT_SECONDS,))
    stopper.start()
    bench.workers.clear()
    gate.set()
    stopper.join()
    assert running.status().state == "succeeded"
    assert bench.broker.depths(["ex"])["ex"] == 3
    bench.worker()
    assert [handle.wait(WAIT_SECONDS).state for handle in waiting] == ["succeeded"] * 3
    assert seen == ["0", "1", "2"]


def test_a_job_that_outlasts_the_grace_goes_back_without_a_lost_attempt(bench: Bench) -> None:
    worker = bench.worker()
    handle = bench.producer.enqueue(Do(what="sleep"))
    until(lambda: handle.status().state == "running")
    worker.stop(0.05)
    bench.workers.clear()
    status = handle.status()
    assert (status.state, status.failures, status.attempt) == ("queued", 0, 0)
    assert bench.broker.depths(["ex"])["ex"] == 1
    bench.worker()
    until(lambda: handle.status().state == "running")
    assert handle.status().attempt == 1
    handle.cancel()
    handle.wait(WAIT_SECONDS)


def test_a_job_whose_claim_was_under_way_when_the_grace_ended_goes_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_claim, go_on = threading.Event(), threading.Event()

    def slow_claim(*arguments: Any, **options: Any) -> Any:
        at_claim.set()
        assert go_on.wait(WAIT_SECONDS)
        return claim(*arguments, **options)

    monkeypatch.setattr("penstock.workers.executor.claiming.claim", slow_claim)
    worker = bench.worker()
    handle = bench.producer.enqueue(Do(what="sleep"))
    assert at_claim.wait(WAIT_SECONDS)
    stopper = threading.Thread(target=worker.stop, args=(0,))
    stopper.start()
    bench.workers.clear()
    until(lambda: worker.executor._runtime.capacity.closed, "the drain to begin")
    worker.executor._runtime.loop.call(lambda: None)  # the drain had its turn, and waits for the claim
    go_on.set()
    stopper.join(WAIT_SECONDS)
    assert not stopper.is_alive(), "the drain waits for a job that began after its grace"
    status = handle.status()
    assert (status.state, status.attempt, bench.broker.depths(["ex"])["ex"]) == ("queued", 0, 1)


def test_a_job_that_crashes_its_worker_too_often_is_quarantined(bench: Bench) -> None:
    """Three workers die under it: each claims it and is never heard of again."""
    handle = bench.producer.enqueue(Seen(name="poison"))
    from penstock.ledger.transitions.claim import ClaimRequest
    from penstock.schemas.wire.codec import decode

    consumer = MemoryConsumer(bench.broker, ["ex"])
    for crash in range(3):
        [delivery] = consumer.fetch(1, 1)
        request = ClaimRequest(decode(delivery.envelope), delivery.deliveries > 1, 3)
        [claimed] = claim(bench.database, [request], worker=f"dead-{crash}")
        assert claimed.crashes == crash  # type: ignore[union-attr]
        consumer.die()
    bench.worker()
    status = handle.wait(WAIT_SECONDS)
    assert (status.state, status.crashes, status.failures) == ("dead", 3, 0)
    assert bench.rows(dead_letters)[0].reason == "crashed"
    assert seen == []
    outcomes = [row.outcome for row in bench.rows(history, history.c.job_id == handle.id)]
    assert outcomes.count("crashed") == 3


def test_a_broker_outage_loses_nothing(bench: Bench) -> None:
    bench.worker()
    bench.broker.down = True
    time_of_outage = time.monotonic()
    until(lambda: time.monotonic() > time_of_outage + 0.2)
    assert bench.workers[0].executor.not_ready() is None
    bench.broker.down = False
    assert bench.run(Add(a=1, b=2)).result == {"sum": 3}


def test_a_worker_holds_back_what_it_does_not_know_and_buries_what_no_worker_can_read(bench: Bench) -> None:
    bench.settings = bench.settings.model_copy(update={"unknown_kind_grace": timedelta(hours=1)})
    bench.worker()
    newer = [
        encode(NoHandler(), id="h1"),
        Envelope("ex", "normal", {"task": "ex.none", "id": "h2"}, b"[[],{},{}]"),
        Envelope("ex", "normal", {"task": "ex.add", "id": "h3", "penstock": {"version": 2}}, b'[[],{"a":"x"},{}]'),
        Envelope("ex", "normal", {"task": "ex.add", "id": "h4"}, b'[[],{"a":1,"b":2,"c":3},{}]'),
    ]
    unreadable = [
        Envelope("ex", "normal", {"task": "ex.add", "id": "h5"}, b'[[],{"a":1,"b":"two"},{}]'),
        Envelope("ex", "normal", {"task": "ex.none", "id": "h6", "penstock": {"fence": "x"}}, b"[[],{},{}]"),
        Envelope("ex", "normal", {}, b"rubbish"),
    ]
    bench.broker.send([*newer, *unreadable])
    until(bench.idle)
    assert {row.job_id: row.reason for row in bench.rows(held_jobs)} == {
        "h1": "no_handler",
        "h2": "unknown_kind",
        "h3": "unknown_version",
        "h4": "invalid_payload",
    }
    assert {row.state for row in bench.rows(jobs, jobs.c.id.in_(["h1", "h2", "h3", "h4"]))} == {"scheduled"}
    assert len(bench.rows(dead_letters)) == len(unreadable)


def test_one_message_that_the_ledger_refuses_does_not_keep_the_others_from_being_held_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.settings = bench.settings.model_copy(update={"unknown_kind_grace": timedelta(hours=1)})
    hold_back = due.hold_back

    def refusing(database: Any, requests: Any, **options: Any) -> Any:
        if any(request.row["id"] == "h7" for request in requests):
            raise ValueError("a value that the database refuses")
        return hold_back(database, requests, **options)

    monkeypatch.setattr(due, "hold_back", refusing)
    bench.worker()
    bench.broker.send([encode(NoHandler(), id=f"h{number}") for number in range(10)])
    until(bench.idle)
    assert len(bench.rows(held_jobs)) == 9
    [letter] = bench.rows(dead_letters)
    assert (letter.id, letter.reason) == ("h7", "no_handler")
    assert "the ledger refuses it" in letter.detail
