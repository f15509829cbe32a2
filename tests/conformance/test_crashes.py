"""Workers that die, stop and start, in the middle of work."""

from __future__ import annotations

import signal
from pathlib import Path

import acme
from support.polling import WAIT_SECONDS, until
from support.stack import Stack, lines


def test_higher_priorities_run_first(own_stack: Stack, tmp_path: Path) -> None:
    """While the one slot is busy, jobs of all priorities gather; then they run by priority, and in order in each."""
    file = tmp_path / "order"
    own_stack.start_worker(concurrency=1)
    first = own_stack.producer.enqueue(acme.Mark(file=str(file), text="first", seconds=2))
    until(lambda: first.status().state == "running", "the first run")
    for number in range(3):
        for priority in ("low", "normal", "high"):
            # Longer than RabbitMQ takes to hand over a lane's next: it is one ahead, and so are the lower lanes.
            job = acme.Mark(file=str(file), text=f"{priority}{number}", seconds=0.3)
            own_stack.producer.enqueue(job, priority=priority)  # type: ignore[arg-type]
    until(lambda: len(lines(file)) == 10, "ten lines")
    expected = [f"{priority}{number}" for priority in ("high", "normal", "low") for number in range(3)]
    assert lines(file) == ["first", *expected]


def test_a_killed_workers_job_is_done_by_another(own_stack: Stack, tmp_path: Path) -> None:
    file = tmp_path / "killed"
    first = own_stack.start_worker()
    slow = own_stack.producer.enqueue(acme.Mark(file=str(file), text="slow", seconds=2))
    once = own_stack.producer.enqueue(acme.MarkOnce(file=str(tmp_path / "once"), text="started", seconds=2))
    until(lambda: slow.status().state == once.status().state == "running", "both runs")
    own_stack.stop_process(first, signal.SIGKILL)
    own_stack.start_worker()
    for handle in (slow, once):
        status = handle.wait(WAIT_SECONDS)
        assert (status.state, status.crashes, status.failures) == ("succeeded", 1, 0)
    assert lines(file) == ["slow"]


def test_a_drained_worker_loses_nothing_and_runs_nothing_twice(own_stack: Stack, tmp_path: Path) -> None:
    file = tmp_path / "drained"
    first = own_stack.start_worker(concurrency=5)
    jobs = [acme.Mark(file=str(file), text=str(number), seconds=0.05) for number in range(200)]
    handles = own_stack.producer.enqueue_many(jobs)
    until(lambda: len(lines(file)) > 20, "some lines")
    assert own_stack.stop_process(first) == 0
    done = lines(file)
    assert len(done) < 200
    own_stack.start_worker()
    for handle in handles:
        assert handle.wait(WAIT_SECONDS).state == "succeeded"
    assert sorted(lines(file), key=int) == [str(number) for number in range(200)]


def test_workers_killed_again_and_again_lose_no_job(own_stack: Stack, tmp_path: Path) -> None:
    file = tmp_path / "chaos"
    jobs = [acme.Mark(file=str(file), text=str(number), seconds=0.05) for number in range(300)]
    handles = own_stack.producer.enqueue_many(jobs)
    for part in (1, 2):
        worker = own_stack.start_worker(concurrency=10)
        until(lambda part=part: len(lines(file)) > 50 * part, "some lines")
        own_stack.stop_process(worker, signal.SIGKILL)
    own_stack.start_worker(concurrency=50)
    for handle in handles:
        assert handle.wait(WAIT_SECONDS).state == "succeeded"
    assert set(lines(file)) == {str(number) for number in range(300)}
