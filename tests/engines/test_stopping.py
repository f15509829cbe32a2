"""How a worker ends: it lets its jobs finish, or gives them back."""

from __future__ import annotations

import signal

from engine_jobs import Sleep
from running import Running
from support.polling import until

from penstock.schemas.states import State


def test_a_remote_shutdown_lets_running_jobs_finish(own_worker: Running) -> None:
    handle = own_worker.producer.enqueue(Sleep(seconds=1.5))
    until(lambda: handle.id in own_worker.active(), "the running job")
    own_worker.tell("shutdown")
    assert own_worker.process.wait(60) == 0
    assert handle.status().state is State.SUCCEEDED


def test_sigterm_drains_while_it_still_answers_and_a_second_one_gives_jobs_back(own_worker: Running) -> None:
    handle = own_worker.producer.enqueue(Sleep(seconds=300))
    until(lambda: handle.id in own_worker.active(), "the running job")
    own_worker.process.send_signal(signal.SIGTERM)
    until(lambda: own_worker.ask("stats")["ready"] is False, "the drain")
    assert own_worker.active() == [handle.id]

    own_worker.process.send_signal(signal.SIGTERM)
    assert own_worker.process.wait(60) == 0
    status = handle.status()
    assert status.state is State.QUEUED
    assert status.attempt == 0, "an interruption costs no attempt"


def test_a_job_given_back_runs_on_the_next_worker(own_worker: Running) -> None:
    handle = own_worker.producer.enqueue(Sleep(seconds=3))
    until(lambda: handle.id in own_worker.active(), "the running job")
    for _ in range(2):
        own_worker.process.send_signal(signal.SIGINT)
    assert own_worker.process.wait(60) == 0
    own_worker.start()
    handle.wait(timeout=60)
    assert handle.status().attempt == 1
