"""A stock Celery client over the workers of both engines."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from engine_jobs import OTHER_QUEUE, QUEUE, Add, Aside, Sleep
from running import Running
from support.ledgers import Note, claimed, message, row_of
from support.polling import until

from penstock.config.errors import JobFailed
from penstock.ledger.sql.database import Database
from penstock.ledger.transitions.due import schedule
from penstock.schemas.states import State
from penstock.schemas.wire.codec import encode
from penstock.workers.engines.monitoring.remote_control import Remote


@pytest.fixture(autouse=True)
def idle(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that failed leaves nothing running for the next one, which has the same worker."""
    worker = request.getfixturevalue("worker") if "worker" in request.fixturenames else None
    yield
    if worker and (left := worker.active()):
        worker.ask("terminate", signal="TERM", task_id=left)


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
    assert output["kwargs"] == {"seconds": 300.0, "note": ""}
    assert output["hostname"] == worker.name
    assert output["worker_pid"] == worker.process.pid
    assert worker.ask("query_task", ids=[handle.id])[handle.id][0] == "active"

    worker.ask("revoke", task_id=handle.id)
    assert handle.id in worker.active(), "revoke without terminate leaves a running job alone"
    worker.ask("revoke", task_id=handle.id, terminate=True)
    until(lambda: handle.status().state is State.CANCELLED, "the cancellation")


def test_scheduled_lists_jobs_of_its_queues_that_wait_in_the_ledger(worker: Running) -> None:
    later = datetime.now(UTC) + timedelta(hours=2)
    listed, sooner, aside = (
        encode(job, due_at=due_at)
        for job, due_at in ((Add(a=1), later), (Sleep(seconds=1), later - timedelta(hours=1)), (Aside(), later))
    )
    schedule(worker.database, [listed, sooner, aside])
    first, second = worker.ask("scheduled")
    assert [first["request"]["id"], second["request"]["id"]] == [sooner.id, listed.id]
    assert (second["eta"], second["priority"]) == (later.isoformat(), 6)
    assert (second["request"]["name"], second["request"]["kwargs"]) == ("engines.add", {"a": 1, "b": 1, "card": "***"})
    assert worker.ask("query_task", ids=[listed.id, aside.id, "unknown"]) == {
        listed.id: ["scheduled", second["request"]]
    }
    worker.ask("revoke", task_id=[listed.id, sooner.id])
    assert worker.ask("scheduled") == []


def test_a_job_that_waits_is_revoked_and_never_runs(worker: Running) -> None:
    short = [Add(a=1)] * 300  # by their pace the worker claims ahead
    handles = worker.producer.enqueue_many([*short, *[Sleep(seconds=300)] * 6])
    sleepers = {handle.id: handle for handle in handles[300:]}
    first = until(lambda: len(active := sleepers.keys() & worker.active()) == 5 and active, "five running jobs")
    [waiting] = [handle for job_id, handle in sleepers.items() if job_id not in first]

    worker.ask("revoke", task_id=[waiting.id])
    until(lambda: waiting.status().state is State.CANCELLED, "its end, also where it was claimed")
    worker.ask("terminate", signal="TERM", task_id=sorted(first))
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


@pytest.mark.parametrize("name", ["w1", "w2"])
def test_a_job_that_is_revoked_while_it_begins_is_cancelled_by_its_own_worker(ledger: Database, name: str) -> None:
    """Its claim is on record, and the executor does not list it yet."""
    sent = message(Note())
    claimed(ledger, sent, worker="w1")
    executor = SimpleNamespace(running=list, waiting=list, cancel=lambda job_id: False)
    events = SimpleNamespace(revoked=lambda job_id: None)
    remote: Any = Remote(SimpleNamespace(name=name, database=ledger, executor=executor), events, lambda: None)  # type: ignore[arg-type]
    assert remote.revoke(sent.id, terminate=True) == {"ok": f"terminate: {sent.id}"}
    assert row_of(ledger, sent.id).cancel_requested == (name == "w1")
