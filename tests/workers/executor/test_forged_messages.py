"""Messages on a worker's queue that its broker got from someone else."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from support.polling import WAIT_SECONDS, until
from workers.executor.bench import Add, Bench, DoInThread, Seen, gate, seen

from penstock.ledger.queries.selection import Selection
from penstock.ledger.sql.tables import dead_letters, jobs
from penstock.ledger.transitions import due
from penstock.ledger.transitions.replay import replay
from penstock.producers.senders import open_sender
from penstock.schemas.wire.codec import Envelope, encode
from penstock.workers.engines.worker import Worker

LATER = timedelta(hours=1)


@pytest.mark.parametrize(
    "forged",
    [
        encode(Seen(name="forged"), id="real", tenant="acme"),
        encode(Add(a=6, b=6), id="real", tenant="mallory"),
        encode(Add(a=6, b=6), id="real"),
        encode(Add(a=6, b=6), id="real", tenant="acme", queue="others"),
    ],
    ids=["kind", "tenant", "no tenant", "queue"],
)
def test_a_message_with_the_id_of_another_job_is_a_dead_letter_of_its_own(bench: Bench, forged: Envelope) -> None:
    due.schedule(bench.database, [encode(Add(a=1, b=1), id="real", tenant="acme", due_at=datetime.now(UTC) + LATER)])
    [before] = bench.rows(jobs)
    forged.queue = "ex"
    if forged.headers["penstock"].get("tenant") == "acme" and forged.kind == "ex.add":
        forged.headers["penstock"]["queue"] = "others"
    bench.worker()
    bench.broker.send([forged])
    until(lambda: bench.idle() and bench.rows(dead_letters))
    [letter] = bench.rows(dead_letters)
    assert (letter.reason, letter.raw) == ("id_taken", forged.body)
    assert letter.id != "real"
    assert "real" in letter.detail
    assert bench.rows(jobs) == [before]
    assert seen == []


def test_the_real_message_that_comes_while_a_forged_one_is_in_flight_is_not_dropped(bench: Bench) -> None:
    due.schedule(bench.database, [encode(Add(a=1, b=1), id="real", due_at=datetime.now(UTC) + LATER)])
    worker = bench.worker(concurrency=1)
    bench.broker.send([encode(DoInThread(what="gate"), id="first")])
    first = bench.producer.handle("first")
    until(lambda: first.status().state == "running")
    # Both wait for the only slot when they are admitted.
    bench.broker.send([encode(Seen(name="forged"), id="real"), encode(Add(a=1, b=1), id="real")])
    worker.executor.resize(2)
    gate.set()
    assert bench.producer.handle("real").wait(WAIT_SECONDS).state == "succeeded"
    until(bench.idle)
    assert [letter.reason for letter in bench.rows(dead_letters)] == ["id_taken"]
    assert seen == []


def test_a_forged_message_does_not_disturb_the_jobs_of_its_batch(bench: Bench) -> None:
    due.schedule(bench.database, [encode(Add(a=1, b=1), id="real", due_at=datetime.now(UTC) + LATER)])
    forged: Any = encode(Seen(name="forged"), id="real")
    bench.broker.send([*(encode(Seen(name=str(number))) for number in range(5)), forged, encode(Seen(name="5"))])
    bench.worker()
    until(lambda: bench.idle() and len(seen) == 6)
    assert sorted(seen) == [str(number) for number in range(6)]


@pytest.fixture(params=["redis_url", "amqp_url"])
def worker_on_broker(request: pytest.FixtureRequest, bench: Bench, prefix: str) -> Worker:
    url = request.getfixturevalue(request.param)
    bench.settings = bench.settings.model_copy(update={"broker_url": url, "prefix": prefix, "max_message_bytes": 1024})
    worker = Worker(bench.settings, engine="inline", queues=["ex"], concurrency=10)
    bench.workers.append(worker)
    return worker


def test_a_message_over_the_limit_becomes_a_dead_letter_and_the_others_run(
    bench: Bench, worker_on_broker: Worker
) -> None:
    limit = bench.settings.message_limit
    sender = open_sender(bench.settings.broker_url, prefix=bench.settings.prefix)
    large = [encode(Seen(name="x" * limit), id=f"large-{number}") for number in range(4)]
    small = [encode(Seen(name=str(number))) for number in range(4)]
    sender.send([message for pair in zip(large, small, strict=True) for message in pair])
    worker_on_broker.start()
    until(lambda: len(seen) == 4 and len(bench.rows(dead_letters)) == 4)
    until(lambda: sender.depths(["ex"]) == {"ex": 0})
    sender.close()
    assert sorted(seen) == ["0", "1", "2", "3"]
    for letter in bench.rows(dead_letters):
        assert letter.reason == "too_large"
        assert "only the beginning" in letter.detail
        assert letter.raw == large[0].body[: len(letter.raw)]
        assert len(letter.raw) == 64 * 1024
        assert bench.producer.handle(letter.id).status().state == "dead"
    [result] = replay(bench.database, Selection(ids=("large-0",)), actor="ada", dry_run=True)
    assert "only the beginning" in str(result.problem)
