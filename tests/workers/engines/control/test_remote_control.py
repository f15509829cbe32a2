"""A stock Celery client over the workers of both engines."""

from __future__ import annotations

import pytest
from engine_jobs import OTHER_QUEUE, QUEUE, Add, Aside, Sleep
from running import Running
from support.polling import until

from penstock.config.errors import JobFailed
from penstock.schemas.states import State


def test_inspect_finds_the_worker_and_lists_its_kinds(worker: Running) -> None:
    inspect = worker.client.control.inspect(destination=[worker.name], timeout=10)
    assert inspect.ping() == {worker.name: {"ok": "pong"}}
    assert inspect.registered() == {
        worker.name: [f"engines.{word}" for word in ("add", "aside", "break", "end", "isolated", "note", "sleep")],
    }
    assert inspect.scheduled() == {worker.name: []}


def test_active_queues_are_the_queues_of_the_worker(worker: Running) -> None:
    assert [queue["name"] for queue in worker.ask("active_queues")] == [QUEUE]


def test_stats_contain_the_pool_the_broker_and_the_jobs_so_far(worker: Running) -> None:
    worker.producer.enqueue(Add(a=1)).wait(timeout=60)
    stats = worker.ask("stats")
    assert stats["pid"] == worker.process.pid
    assert stats["pool"]["max-concurrency"] == 5
    assert stats["total"]["engines.add"] >= 2
    assert "password" not in stats["broker"]
    assert stats["rusage"]["maxrss"] > 0
    assert stats["ready"] is True
    assert (stats["faults"], stats["failures"]) == ({}, {})


def test_report_and_conf_name_the_broker_without_its_password(worker: Running) -> None:
    for command in ("report", "conf"):
        answer = str(worker.ask(command))
        assert "guest:guest" not in answer
        assert "127.0.0.1" in answer


def test_active_shows_what_runs_and_terminate_ends_it(worker: Running) -> None:
    handle = worker.producer.enqueue(Sleep(seconds=300))
    output = until(lambda: [job for job in worker.ask("active") if job["id"] == handle.id], "the running job")[0]
    assert output["name"] == "engines.sleep"
    assert output["kwargs"] == {"seconds": 300.0}
    assert output["hostname"] == worker.name
    assert output["worker_pid"] == worker.process.pid
    assert worker.ask("query_task", ids=[handle.id])[handle.id][0] == "active"

    worker.ask("revoke", task_id=handle.id)
    assert handle.id in worker.active(), "revoke without terminate leaves a running job alone"
    worker.ask("revoke", task_id=handle.id, terminate=True)
    until(lambda: handle.status().state is State.CANCELLED, "the cancellation")


def test_a_job_that_waits_is_revoked_and_never_runs(worker: Running) -> None:
    first = [worker.producer.enqueue(Sleep(seconds=300)) for _ in range(5)]
    until(lambda: len(worker.active()) == 5, "five running jobs")
    waiting = worker.producer.enqueue(Sleep(seconds=300))
    until(lambda: [job for job in worker.ask("reserved") if job["id"] == waiting.id], "the waiting job")

    worker.ask("revoke", task_id=[waiting.id])
    assert waiting.status().state is State.CANCELLED
    worker.ask("terminate", signal="TERM", task_id=[handle.id for handle in first])
    until(lambda: not worker.active() and not worker.ask("reserved"), "an idle worker")
    assert waiting.status().attempt == 0


def test_a_job_no_worker_has_seen_is_revoked_by_its_id(worker: Running) -> None:
    revoked, other = worker.producer.enqueue(Aside()), worker.producer.enqueue(Aside())
    worker.ask("revoke", task_id=revoked.id)
    worker.ask("add_consumer", queue=OTHER_QUEUE)
    assert other.result(timeout=60) == "done"
    with pytest.raises(JobFailed, match="cancelled"):
        revoked.result(timeout=60)
    assert {queue["name"] for queue in worker.ask("active_queues")} == {QUEUE, OTHER_QUEUE}
    worker.ask("cancel_consumer", queue=OTHER_QUEUE)
    assert {queue["name"] for queue in worker.ask("active_queues")} == {QUEUE}


def test_the_pool_grows_and_shrinks(worker: Running) -> None:
    assert worker.ask("pool_grow", n=2) == {"ok": "pool will grow"}
    sleepers = [worker.producer.enqueue(Sleep(seconds=300)) for _ in range(7)]
    until(lambda: len(worker.active()) == 7, "seven running jobs")
    worker.ask("pool_shrink", n=2)
    assert worker.ask("stats")["pool"]["max-concurrency"] == 5
    worker.ask("terminate", signal="TERM", task_id=[handle.id for handle in sleepers])
    until(lambda: not worker.active(), "an idle worker")


def test_unsupported_commands_answer_with_an_error(worker: Running) -> None:
    for command, arguments in {
        "rate_limit": {"task_name": "engines.add", "rate_limit": "1/s"},
        "time_limit": {"task_name": "engines.add", "hard": 1},
        "autoscale": {"max": 3, "min": 1},
        "pool_restart": {},
    }.items():
        assert "error" in worker.ask(command, **arguments)
