"""The metrics of a worker, against jobs that really went that way."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from prometheus_client import generate_latest
from support.polling import until
from support.servers.scrape import Samples
from workers.executor.bench import Add, Bench, Do, DoInThread, DoIsolated, Seen, Untracked, gate, seen
from workers.executor.suspects.suspect_jobs import Coroutine

from penstock.config.settings import Settings
from penstock.ledger.sql.tables import jobs
from penstock.ledger.transitions.claim import Claim, ClaimRequest, claim
from penstock.ledger.transitions.outcome import AttemptOutcome
from penstock.schemas.states import Outcome, State
from penstock.schemas.wire.codec import Message, decode, encode
from penstock.workers.brokers.memory import MemoryConsumer
from penstock.workers.engines.worker import Worker
from penstock.workers.executor.runtime.rates import RateCounter
from penstock.workers.telemetry.metrics import worker_metrics
from penstock.workers.telemetry.metrics.worker_metrics import JOB_BUCKETS, OTHER, Histogram, WorkerMetrics


def read(worker: Worker) -> Samples:
    assert worker.registry is not None
    return Samples(generate_latest(worker.registry).decode())


@pytest.mark.parametrize(
    ("job", "outcome"),
    [
        (Add(a=1, b=2), "succeeded"),
        (Untracked(), "succeeded"),
        (Do(what="fail"), "retry"),
        (Do(what="permanent"), "dead"),
        (Do(what="snooze"), "snoozed"),
        (Do(what="discard"), "discarded"),
        (DoIsolated(what="fail"), "retry"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_each_outcome_is_counted_once(bench: Bench, job: Any, outcome: str) -> None:
    worker = bench.worker(engine="inline")
    bench.producer.enqueue(job)
    labels = {"kind": type(job).kind().name, "queue": "ex", "engine": "inline"}
    until(lambda: read(worker).value("penstock_jobs_total", outcome=outcome, **labels) == 1)
    samples = read(worker)
    assert samples.value("penstock_jobs_total") == 1
    assert samples.value("penstock_job_run_seconds_count", kind=labels["kind"]) == 1
    assert samples.value("penstock_job_wait_seconds_count", queue="ex") == 1
    until(lambda: read(worker).value("penstock_worker_in_flight") == 0)


def test_a_cancelled_and_an_interrupted_job_are_counted(bench: Bench) -> None:
    worker = bench.worker()
    cancelled, interrupted = (bench.producer.enqueue(Do(what="sleep")) for _ in range(2))
    until(lambda: read(worker).value("penstock_worker_slots", state="used") == 2)
    assert read(worker).value("penstock_worker_slots", state="free") == 8
    assert read(worker).value("penstock_worker_in_flight") == 2
    cancelled.cancel()
    until(lambda: read(worker).value("penstock_jobs_total", outcome="cancelled") == 1)
    worker.stop(0)
    bench.workers.clear()
    samples = read(worker)
    assert samples.value("penstock_jobs_total", outcome="interrupted") == 1
    assert samples.value("penstock_worker_ready") == 0
    assert interrupted.status().state == "queued"


def test_duplicates_are_refused(bench: Bench) -> None:
    worker = bench.worker()
    envelope = encode(Seen(name="once"))
    bench.broker.send([envelope])
    until(lambda: seen == ["once"] and bench.idle())
    bench.broker.send([envelope, envelope])
    until(lambda: read(worker).value("penstock_claims_refused_total", reason="ended") >= 1)
    until(bench.idle)
    assert read(worker).labels("penstock_claims_refused_total", "reason") <= {"ended", "duplicate"}
    assert read(worker).value("penstock_jobs_total") == 1


def test_an_outcome_that_another_worker_has_overtaken_is_a_lost_lease(bench: Bench) -> None:
    worker = bench.worker()
    handle = bench.producer.enqueue(DoInThread(what="gate"))
    until(lambda: handle.status().state == "running")
    taken_over = sa.update(jobs).where(jobs.c.id == handle.id).values(fence=jobs.c.fence + 1, state="succeeded")
    bench.database.write(lambda connection: connection.execute(taken_over))
    gate.set()
    until(lambda: read(worker).value("penstock_leases_lost_total") == 1)
    assert read(worker).value("penstock_jobs_total") == 0


def test_the_crash_of_a_child_is_counted(bench: Bench) -> None:
    """A job that was in a crash runs in a process of its own, and that one dies, too."""
    handle = bench.producer.enqueue(Coroutine(what="exit"))
    consumer = MemoryConsumer(bench.broker, ["ex"])
    [delivery] = consumer.fetch(1, 1)
    claim(bench.database, [ClaimRequest(decode(delivery.envelope), False, 3)], worker="dead")
    consumer.die()
    worker = bench.worker(engine="test")
    until(lambda: read(worker).value("penstock_jobs_total", outcome="crashed", kind="suspect.async") == 1)
    assert read(worker).value("penstock_job_crashes_total", kind="suspect.async") == 2
    assert handle.status().crashes == 2


def test_crashes_and_quarantines_are_counted(bench: Bench) -> None:
    consumer = MemoryConsumer(bench.broker, ["ex"])

    def die_under(crashes: int) -> None:
        bench.producer.enqueue(Seen(name="poison"))
        for crash in range(crashes):
            [delivery] = consumer.fetch(1, 1)
            request = ClaimRequest(decode(delivery.envelope), delivery.deliveries > 1, 3)
            claim(bench.database, [request], worker=f"dead-{crash}")
            consumer.die()

    die_under(1)
    worker = bench.worker()
    until(lambda: read(worker).value("penstock_jobs_total", outcome="succeeded") == 1)
    assert read(worker).value("penstock_job_crashes_total", kind="ex.seen", queue="ex") == 1
    assert read(worker).value("penstock_quarantines_total") == 0
    worker.stop()
    bench.workers.clear()
    die_under(3)
    worker = bench.worker()
    until(lambda: read(worker).value("penstock_quarantines_total", kind="ex.seen", queue="ex") == 1)
    samples = read(worker)
    assert samples.value("penstock_job_crashes_total") == 1, "the crash that this worker has noticed"
    assert samples.value("penstock_jobs_total", outcome="dead") == 1
    assert samples.value("penstock_job_run_seconds_count") == 0


def test_metrics_off_count_nothing(bench: Bench) -> None:
    bench.settings = Settings(**(bench.settings.model_dump() | {"http_port": None}))
    worker = bench.worker(start=False)
    bench.workers.clear()
    assert worker.registry is None
    assert not any(isinstance(observer, WorkerMetrics) for observer in worker.executor.observers)


def test_a_wait_begins_when_the_job_was_due() -> None:
    now = datetime.now(UTC)
    metrics = WorkerMetrics(engine="celery")
    counter = RateCounter(metrics)
    message = decode(encode(Seen(name="x"), sent_at=now - timedelta(hours=1)))
    for since, waited in ((None, 3600.0), (now - timedelta(seconds=2), 2.0), (now + timedelta(seconds=9), 0.0)):
        message.ready_at = since
        before = metrics._series["ex.seen", "ex"].wait.sum
        counter.add([AttemptOutcome(Claim(message, 1, 1, 0, 0, now), Outcome.SUCCEEDED, State.SUCCEEDED, now)])
        list(metrics.collect())
        assert metrics._series["ex.seen", "ex"].wait.sum - before == pytest.approx(waited)


def test_a_reader_in_another_thread_misses_no_attempt_and_counts_none_twice() -> None:
    """While the executor's loop counts, others read: `/metrics` may be scraped at any time."""
    metrics = WorkerMetrics(engine="celery")
    counter = RateCounter(metrics)
    now = datetime.now(UTC)
    claims = [Claim(decode(encode(Seen(name="x"), queue=queue)), 1, 1, 0, 0, now) for queue in ("ex", "other")]
    outcomes = [AttemptOutcome(claim, Outcome.SUCCEEDED, State.SUCCEEDED, now) for claim in claims for _ in range(5)]
    ended = threading.Event()
    counts: list[float] = []

    def scrape() -> None:
        while not ended.is_set():
            counts.append(sum(sample.value for sample in next(iter(metrics.collect())).samples))

    readers = [threading.Thread(target=scrape) for _ in range(3)]
    for reader in readers:
        reader.start()
    for number in range(3000):
        counter.add(outcomes)
        if number % 500 == 0:
            counter.wrote(counter.changed())
    ended.set()
    for reader in readers:
        reader.join()
    list(metrics.collect())
    for queue in ("ex", "other"):
        series = metrics._series["ex.seen", queue]
        assert series.ended["succeeded"] == 15_000
        assert sum(series.run.counts) == sum(series.wait.counts) == 15_000
    assert counts
    assert max(counts) <= 30_000


def test_series_are_limited_and_the_rest_is_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_metrics, "MOST_SERIES", 3)
    metrics = WorkerMetrics(engine="celery")

    def message(queue: str) -> Message:
        return decode(encode(Seen(name="x"), queue=queue))

    for number in range(10):
        metrics.crashed(message(f"q{number}"))
    assert [key[1] for key in metrics._series] == ["q0", "q1", "q2", OTHER]
    assert metrics._series[OTHER, OTHER].crashes == 7


def test_a_histogram_counts_as_prometheus_does() -> None:
    histogram = Histogram(JOB_BUCKETS)
    for value in (0.0, 0.005, 0.0051, 7200.0, -1.0):
        histogram.add(value)
    buckets = dict(histogram.buckets())
    assert (buckets["0.005"], buckets["0.01"], buckets["3600.0"], buckets["+Inf"]) == (3, 4, 4, 5)
    assert histogram.sum == pytest.approx(7200.0101)


def test_every_outcome_has_a_series_from_the_start() -> None:
    metrics = WorkerMetrics(engine="celery")
    metrics.crashed(decode(encode(Seen(name="x"))))
    [jobs_total, *_] = metrics.collect()
    assert [sample.labels["outcome"] for sample in jobs_total.samples] == list(Outcome)
