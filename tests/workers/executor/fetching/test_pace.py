"""How far a worker fetches and claims ahead: by the time until a job will start, and not by a count."""

from __future__ import annotations

import time

import pytest
from support.polling import WAIT_SECONDS, until
from workers.executor.bench import AtMostOnce, Bench, DoInThread, Seen, Untracked, gate, seen

from penstock.ledger.sql.tables import attempts, jobs
from penstock.producers import JobHandle
from penstock.producers.explain import explain
from penstock.workers.engines.worker import Worker
from penstock.workers.executor.runtime.pace import MOST_AHEAD, Pace


@pytest.mark.parametrize(
    ("seconds", "slots", "ahead"),
    [
        (0.00001, 10, MOST_AHEAD),
        (0.001, 10, 500),
        (0.05, 10, 10),
        (0.4, 10, 1),
        (1.0, 10, 0),
        (1.0, 100, 5),
        (0.2, 1, 0),
    ],
)
def test_ahead_is_what_starts_within_a_moment(seconds: float, slots: int, ahead: int) -> None:
    pace = Pace()
    assert pace.ahead(slots, full=True) == 0, "nothing is known yet"
    for _ in range(100):
        pace.ended(seconds)
    assert pace.ahead(slots, full=False) == pytest.approx(ahead, abs=1e-6 + ahead / 100)


def test_long_jobs_after_short_ones_are_noticed_before_the_first_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    pace = Pace()
    pace.ended(0.001)
    pace.filled()
    assert pace.ahead(10, full=True) == MOST_AHEAD
    now += 0.09
    assert pace.ahead(10, full=True) == 1
    assert pace.ahead(10, full=False) == MOST_AHEAD, "a free slot waits for no one"
    now += 0.2
    assert pace.ahead(10, full=True) == 0
    assert pace.ahead(10, full=False) == MOST_AHEAD
    now += 1.0
    assert pace.ahead(10, full=False) == 0, "a worker that was idle does not take a burst for itself"


def _fast(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Worker:
    """A worker with one slot that claims ahead, until nothing ends any more."""
    monkeypatch.setattr(Pace, "ahead", lambda self, slots, full: 0 if full and self.still_seconds() > 0.3 else 5)
    return bench.worker(concurrency=1)


def _claimed_ahead(bench: Bench, worker: Worker) -> list[JobHandle]:
    """A job that runs until the gate opens, and five that the worker has claimed after it."""
    handles = bench.producer.enqueue_many([DoInThread(what="gate"), *(Seen(name=str(n)) for n in range(5))])
    until(lambda: len(worker.executor.running()) == 1, "the first to begin")
    return handles


def test_jobs_claimed_ahead_are_seen_as_such_and_go_to_others_when_nothing_ends(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = _fast(bench, monkeypatch)
    _, *waiting = _claimed_ahead(bench, worker)
    until(lambda: any(handle.status().state == "running" for handle in waiting), "a claim ahead, or its end")
    until(lambda: bench.broker.depths(["ex"])["ex"] == 5, "those that wait to be back with the broker")
    assert not worker.executor.waiting()
    assert worker.executor.prefetch == 1, "nothing is fetched ahead of a long job"
    for handle in waiting:
        status = handle.status()
        assert (status.state, status.attempt, status.failures) == ("queued", 0, 0)
    assert bench.rows(attempts) == [], "no attempt was made"
    bench.worker(concurrency=1)
    for handle in waiting:
        assert handle.wait(WAIT_SECONDS).attempt == 1
    assert seen == [str(n) for n in range(5)], "each once, and in their order"
    gate.set()


def test_explain_says_that_a_job_is_next_to_run(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.workers.executor.claiming._STILL_SECONDS", 3600)
    worker = _fast(bench, monkeypatch)
    first, *waiting = _claimed_ahead(bench, worker)
    until(lambda: any(handle.status().state == "running" for handle in waiting), "a claim ahead")
    ahead = next(handle for handle in waiting if handle.status().state == "running")
    explanation = explain(bench.database, ahead.id, lease=bench.settings.lease)
    assert explanation.because.startswith(f"claimed by worker {worker.name} ")
    assert "next to run" in explanation.because
    assert ahead.id in [message.id for message in worker.executor.waiting()]
    assert "it runs since" in explain(bench.database, first.id, lease=bench.settings.lease).because
    gate.set()
    for handle in waiting:
        assert handle.wait(WAIT_SECONDS).state == "succeeded"
    [row] = bench.rows(jobs, jobs.c.id == ahead.id)
    assert first.status().finished_at <= row.started_at <= row.finished_at, "it started when its slot was free"


def test_a_long_job_that_was_claimed_ahead_is_on_record_as_started_while_it_runs(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penstock.workers.executor.claiming._STILL_SECONDS", 3600)
    _fast(bench, monkeypatch)
    handles = bench.producer.enqueue_many([Seen(name=str(n)) for n in range(50)] + [DoInThread(what="gate")])
    until(lambda: len(seen) == 50, "the short jobs")
    is_last = jobs.c.id == handles[-1].id
    until(lambda: bench.rows(jobs, is_last, jobs.c.started_at.is_not(None)), "the start of the long one on record")
    assert bench.rows(jobs, is_last)[0].state == "running"
    gate.set()
    handles[-1].wait(WAIT_SECONDS)


def test_a_drain_gives_what_was_claimed_ahead_to_others(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.workers.executor.claiming._STILL_SECONDS", 3600)
    worker = _fast(bench, monkeypatch)
    _, *waiting = _claimed_ahead(bench, worker)
    until(lambda: any(handle.status().state == "running" for handle in waiting), "a claim ahead")
    gate.set()
    worker.stop()
    bench.workers.clear()
    assert bench.broker.depths(["ex"])["ex"] + len(seen) == 5
    bench.worker(concurrency=1)
    assert [handle.wait(WAIT_SECONDS).attempt for handle in waiting] == [1] * 5
    assert seen == [str(n) for n in range(5)]
    assert bench.rows(attempts) == [], "successes are in the jobs' rows, and nothing was interrupted"


def test_a_job_that_is_cancelled_after_it_was_claimed_ahead_never_runs(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penstock.workers.executor.claiming._STILL_SECONDS", 3600)
    worker = _fast(bench, monkeypatch)
    _, *waiting = _claimed_ahead(bench, worker)
    until(lambda: any(handle.status().state == "running" for handle in waiting), "a claim ahead")
    ahead = next(handle for handle in waiting if handle.status().state == "running")
    ahead.cancel()
    until(lambda: ahead.status().state == "cancelled", "the next heartbeat")
    assert ahead.status().attempt == 0
    gate.set()
    for handle in waiting:
        handle.wait(WAIT_SECONDS)
    assert len(seen) == 4


def test_a_job_that_must_not_run_twice_or_is_not_on_record_is_not_claimed_ahead(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penstock.workers.executor.claiming._STILL_SECONDS", 3600)
    worker = _fast(bench, monkeypatch)
    _, once, _ = bench.producer.enqueue_many([DoInThread(what="gate"), AtMostOnce(name="once"), Untracked()])
    until(lambda: len(worker.executor.waiting()) == 2, "both to wait in the worker")
    assert not worker.executor._claiming.waiting()
    assert bench.rows(jobs, jobs.c.id == once.id) == []
    gate.set()
    until(lambda: seen == ["once"], "the job to run")
