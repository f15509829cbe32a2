"""Handlers that misbehave: each is one failed attempt of its own job, and the worker goes on."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from datetime import datetime
from typing import cast

import pytest
from support.polling import until
from workers.executor.bench import Bench, DoInThread, Seen, gate, seen
from workers.executor.misbehaving import jobs as mis

from penstock.config.supervision import faults
from penstock.ledger.sql.tables import attempts, dead_letters, jobs, workers
from penstock.schemas import Job, State
from penstock.workers.brokers.memory import MemoryConsumer
from penstock.workers.dispatcher.due_jobs import send_due
from penstock.workers.executor import watchdog
from penstock.workers.executor.attempt.modes import STOPPING_SECONDS
from penstock.workers.executor.runtime.pace import Pace
from penstock.workers.executor.watchdog import clock_lead, report_clock_change


@pytest.fixture(autouse=True)
def released() -> Iterator[None]:
    mis.release.clear()
    mis.begin.clear()
    yield
    mis.begin.set()
    mis.release.set()


@pytest.mark.parametrize(
    ("job", "error"),
    [
        (mis.Misbehave(how="exit"), "SystemExit"),
        (mis.Misbehave(how="exit in a task"), "SystemExit"),
        (mis.Misbehave(how="exit in a gather"), "SystemExit"),
        (mis.Misbehave(how="exit in a task group"), "SystemExit"),
        (mis.Misbehave(how="exit in a thread"), "SystemExit"),
        (mis.Misbehave(how="interrupt"), "KeyboardInterrupt"),
        (mis.Misbehave(how="StopIteration"), "StopIteration"),
        (mis.Misbehave(how="cancel itself"), "CancelledError"),
        (mis.MisbehaveInThread(how="exit"), "SystemExit"),
        (mis.MisbehaveInThread(how="interrupt"), "KeyboardInterrupt"),
        (mis.MisbehaveInThread(how="StopIteration"), "StopIteration"),
        (mis.MisbehaveInThread(how="CancelledError"), "CancelledError"),
    ],
    ids=lambda value: f"{value.kind().name}-{value.how}" if isinstance(value, Job) else "",
)
def test_an_exit_out_of_a_handler_fails_its_job_alone(bench: Bench, job: Job, error: str) -> None:
    bench.worker()
    status = bench.run(job)
    assert status.state == State.DEAD
    assert error in (status.error or "")
    assert bench.run(mis.Ping()).state == State.SUCCEEDED


@pytest.mark.parametrize("how", ["exit in a callback", "stop the loop"])
def test_a_loop_that_a_handler_ends_goes_on_and_says_so(
    bench: Bench, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """No one can say which job the callback belongs to, so the job itself ends as its handler does."""
    bench.worker()
    before = faults["event loop stopped"]
    assert bench.run(mis.Misbehave(how=how)).state == State.SUCCEEDED
    assert bench.run(mis.Ping()).state == State.SUCCEEDED
    assert "which goes on" in caplog.text
    assert faults["event loop stopped"] == before + 1


@pytest.mark.parametrize("how", ["raised", "awaited"])
def test_a_cancelled_error_that_no_one_asked_for_is_a_failed_attempt(bench: Bench, how: str) -> None:
    bench.worker()
    handle = bench.producer.enqueue(mis.Fickle(how=how))

    def is_dead() -> bool:
        send_due(bench.database, bench.broker)
        return handle.status().state == State.DEAD

    until(is_dead)
    rows = bench.rows(attempts, attempts.c.job_id == handle.id)
    assert [row.outcome for row in rows] == ["retry", "retry", "dead"]
    assert all("CancelledError" in row.error for row in rows)


def test_a_coroutine_that_ignores_its_timeout_loses_its_slot(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.worker(concurrency=1)
    before = faults["handler left behind"]
    handle = bench.producer.enqueue(mis.Stubborn())
    until(lambda: handle.status().state == State.RUNNING)
    assert bench.run(mis.Ping()).state == State.SUCCEEDED  # there is one slot
    status = handle.status()
    assert status.state == State.DEAD
    assert "TimedOut" in (status.error or "")
    assert f"job {handle.id} (mis.stubborn) did not stop" in caplog.text
    assert faults["handler left behind"] == before + 1


def test_a_coroutine_that_ignores_its_cancellation_is_cancelled_all_the_same(bench: Bench) -> None:
    bench.worker(concurrency=1)
    handle = bench.producer.enqueue(mis.StubbornForever())
    until(lambda: handle.status().state == State.RUNNING)
    handle.cancel()
    assert until(lambda: handle.status().state != State.RUNNING and handle.status().state) == State.CANCELLED
    assert bench.run(mis.Ping()).state == State.SUCCEEDED


def test_a_drain_ends_without_coroutines_that_ignore_it(bench: Bench) -> None:
    worker = bench.worker()
    handle = bench.producer.enqueue(mis.StubbornForever())
    until(lambda: handle.status().state == State.RUNNING)
    worker.stop(grace_seconds=0)
    bench.workers.clear()
    assert handle.status().state == State.QUEUED
    assert [row.outcome for row in bench.rows(attempts)] == ["interrupted"]
    assert bench.broker.depths(["ex"])["ex"] == 1
    assert STOPPING_SECONDS < 10
    gc.collect()  # would not come back: the coroutine swallows `GeneratorExit`, too


def test_tasks_that_a_handler_left_running_end_with_the_loop(bench: Bench) -> None:
    mis.ended.clear()
    worker = bench.worker()
    assert bench.run(mis.Misbehave(how="leave tasks")).state == State.SUCCEEDED
    worker.stop(grace_seconds=0)
    bench.workers.clear()
    assert mis.ended == ["orderly"]
    gc.collect()


def test_a_handler_that_blocks_the_loop_is_named_and_its_worker_keeps_its_lease(
    bench: Bench, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lease is 2 s long, and the loop blocked for longer: no one takes the job for abandoned."""
    assert watchdog._REPORTED_AFTER[:2] == (1.0, 10.0)
    monkeypatch.setattr(watchdog, "_REPORTED_AFTER", (1.0, 2.0))
    worker = bench.worker()
    before = faults["event loop blocked"]
    handle = bench.producer.enqueue(mis.Block())
    until(lambda: caplog.text.count(f"job {handle.id} (mis.block) has blocked the event loop") == 2, "both reports")
    assert "misbehaving/jobs.py" in caplog.text
    assert worker.executor.not_ready() is not None
    assert worker.executor.wait_for_capacity(0) == 0
    assert faults["event loop blocked"] == before + 1
    first = lease_of(bench, worker.name)
    assert until(lambda: lease_of(bench, worker.name) > first)
    mis.release.set()
    until(lambda: handle.status().state == State.SUCCEEDED)
    until(lambda: worker.executor.not_ready() is None)
    assert bench.run(mis.Ping()).state == State.SUCCEEDED
    assert not bench.rows(dead_letters)


def test_a_blocked_worker_gives_back_what_it_has_not_started_unless_that_would_count(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MemoryConsumer, "counts_releases", True)
    monkeypatch.setattr(Pace, "ahead", lambda self, slots, full: 4)
    slots = [mis.BlockLater(), *[DoInThread(what="gate")] * 3]
    handles = [bench.producer.enqueue(job) for job in (*slots, Seen(name="again"), Seen(name="once more"))]
    consumer = MemoryConsumer(bench.broker, ["ex"])
    assert len(consumer.fetch(6, 1)) == 6
    consumer.die()
    handles += [bench.producer.enqueue(Seen(name=name)) for name in ("new", "also new")]
    worker = bench.worker(concurrency=4)
    until(lambda: len(worker.executor.running()) == 4 and len(worker.executor.waiting()) == 4)
    mis.begin.set()
    until(lambda: bench.broker.depths(["ex"])["ex"] == 2 and worker.executor.in_flight == 6)
    assert {message.job.name for message in worker.executor.waiting()} == {"again", "once more"}
    mis.release.set()
    gate.set()
    until(lambda: all(handle.status().state == State.SUCCEEDED for handle in handles))
    assert sorted(seen) == sorted(["again", "once more", "new", "also new"])
    assert [handle.status().attempt for handle in handles] == [1] * 8
    until(bench.idle)
    assert worker.executor.in_flight == 0


def test_others_run_what_a_blocked_worker_had_claimed_ahead(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pace, "ahead", lambda self, slots, full: 4)
    blocked = bench.worker(concurrency=1)
    first = bench.producer.enqueue(mis.BlockLater())
    until(lambda: len(blocked.executor.running()) == 1)
    handles = [bench.producer.enqueue(Seen(name=str(n))) for n in range(3)]
    until(lambda: len(bench.rows(jobs, jobs.c.state == State.RUNNING)) == 4, "three claims ahead")
    bench.worker(concurrency=1)
    mis.begin.set()
    until(lambda: all(handle.status().state == State.SUCCEEDED for handle in handles), "the other worker to run them")
    assert first.status().state == State.RUNNING, "and it still blocks"
    assert seen == ["0", "1", "2"]
    assert [handle.status().attempt for handle in handles] == [1] * 3
    assert not bench.rows(attempts)
    mis.release.set()
    until(lambda: bench.idle() and not blocked.executor.in_flight)


def lease_of(bench: Bench, worker: str) -> datetime:
    [row] = bench.rows(workers, workers.c.name == worker)
    return cast(datetime, row.lease_until)


@pytest.fixture(autouse=True)
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.INFO):
        yield


@pytest.mark.parametrize(("seconds", "direction"), [(600.0, "forward"), (-600.0, "back")])
def test_a_clock_that_is_set_is_reported_and_counted(
    seconds: float, direction: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = faults["clock changed"]
    now = report_clock_change(clock_lead() - seconds)
    assert f"went {direction} by 600.0 s" in caplog.text
    assert report_clock_change(now) == pytest.approx(now, abs=0.9), "and once"
    assert faults["clock changed"] == before + 1
