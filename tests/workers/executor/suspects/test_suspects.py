"""Attempts of jobs that were running when their worker crashed: each in a child, with all that a worker gives it."""

from __future__ import annotations

import json
import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.polling import WAIT_SECONDS, until
from workers.executor.bench import Add, Bench
from workers.executor.suspects import suspect_jobs
from workers.executor.suspects.cutting import cut_off, cut_off_all
from workers.executor.suspects.suspect_jobs import (
    EFFECTS,
    Coroutine,
    Fragile,
    Function,
    Hurried,
    HurriedFunction,
    Isolated,
    Suspect,
    Untracked,
)

from penstock.ledger.effects import effect_id
from penstock.ledger.rows.attempts import history
from penstock.ledger.rows.suspect_runs import begin_untracked, end, spare
from penstock.ledger.sql.tables import dead_letters, jobs, suspect_runs
from penstock.producers import JobHandle
from penstock.schemas import Job
from penstock.schemas.jobs.kind import registry
from penstock.workers import handles
from penstock.workers.brokers.memory import MemoryConsumer
from penstock.workers.executor.attempt.child.parent import Children
from penstock.workers.executor.attempt.errors import NoChildProcess
from penstock.workers.executor.attempt.suspects.parent import _FEW
from penstock.workers.handlers.registry import handlers
from penstock.workers.handlers.resources import override

BOTH = pytest.mark.parametrize("kind", [Coroutine, Function])
DEATHS = [("exit", "exit code 9"), ("kill", "SIGKILL"), ("segfault", "SIGSEGV")]


@pytest.fixture(autouse=True)
def effects_table(bench: Bench) -> None:
    EFFECTS.metadata.create_all(bench.database.engine)


def run(bench: Bench, job: Job) -> Any:
    """Status of a job after its first attempt since its worker crashed."""
    handle = cut_off(bench, job)
    bench.worker(engine="test")
    until(lambda: len(outcomes(bench, handle)) > 1)
    return handle.status()


def outcomes(bench: Bench, handle: JobHandle) -> list[str]:
    select = bench.rows(history, history.c.job_id == handle.id)
    return [row.outcome for row in sorted(select, key=lambda row: row.fence)]


@BOTH
def test_a_suspect_has_a_process_of_its_own_and_all_that_a_handler_gets(bench: Bench, kind: type[Suspect]) -> None:
    status = run(bench, kind(what="fine"))
    pid, of_resource = status.result
    assert pid == of_resource != os.getpid()
    assert (status.state, status.crashes, status.attempt) == ("succeeded", 1, 1)
    assert status.progress.note == "half way"
    assert len(bench.rows(jobs, jobs.c.kind == "suspect.next")) == 1


@BOTH
def test_the_session_of_a_suspect_commits_with_its_outcome(bench: Bench, kind: type[Suspect]) -> None:
    status = run(bench, kind(what="session"))
    assert status.state == "succeeded"
    assert [row.job_id for row in bench.rows(EFFECTS)] == [status.id]
    until(bench.idle)


@BOTH
def test_a_suspect_that_fails_is_a_failed_attempt_under_its_policy(bench: Bench, kind: type[Suspect]) -> None:
    status = run(bench, kind(what="session and fail"))
    assert (status.state, status.failures, status.crashes) == ("dead", 1, 1)
    assert status.error.startswith("ValueError: boom")
    assert bench.rows(EFFECTS) == []
    assert bench.rows(dead_letters)[0].reason == "failed"
    [failed] = bench.rows(history, history.c.job_id == status.id, history.c.outcome == "dead")
    assert 'raise ValueError("boom")' in failed.traceback


@BOTH
@pytest.mark.parametrize(
    ("what", "error"),
    [("sys.exit", "SystemExit"), ("StopIteration", "StopIteration"), ("CancelledError", "CancelledError")],
)
def test_an_exit_out_of_the_handler_of_a_suspect_is_a_failed_attempt_and_no_crash(
    bench: Bench, kind: type[Suspect], what: str, error: str
) -> None:
    status = run(bench, kind(what=what))
    assert (status.state, status.failures, status.crashes) == ("dead", 1, 1)
    assert error in status.error


@pytest.mark.parametrize("what", ["exit in a callback", "stop the loop"])
def test_the_loop_of_a_suspect_that_it_ends_goes_on(bench: Bench, what: str) -> None:
    status = run(bench, Coroutine(what=what))
    assert (status.state, status.failures, status.crashes) == ("succeeded", 0, 1)


@BOTH
def test_a_large_result_of_a_suspect_is_in_the_storage(bench: Bench, tmp_path: Path, kind: type[Suspect]) -> None:
    bench.settings = bench.settings.model_copy(update={"storage_url": f"file:{tmp_path}/storage"})
    status = run(bench, kind(what="large"))
    assert status.state == "succeeded"
    [row] = bench.rows(jobs, jobs.c.id == status.id)
    assert json.loads((tmp_path / "storage" / row.result_ref).read_bytes()) == "x" * 200_000


@BOTH
def test_an_effect_of_a_suspect_is_on_record(bench: Bench, kind: type[Suspect]) -> None:
    status = run(bench, kind(what="once"))
    assert status.result == effect_id(status.id, "charge")


@BOTH
@pytest.mark.parametrize(("what", "death"), DEATHS)
def test_the_death_of_a_child_is_a_crash_of_its_job_alone(
    bench: Bench, kind: type[Suspect], what: str, death: str
) -> None:
    status = run(bench, kind(what=what))
    assert (status.state, status.crashes, status.failures) == ("scheduled", 2, 0)
    assert death in status.error
    assert bench.run(Add(a=1, b=1)).state == "succeeded"
    rows = bench.rows(history, history.c.job_id == status.id)
    assert [row.outcome for row in rows] == ["crashed", "crashed"]


def test_the_last_crash_that_is_allowed_makes_a_dead_letter(bench: Bench) -> None:
    status = run(bench, Fragile(what="exit"))
    assert (status.state, status.crashes, status.failures) == ("dead", 2, 0)
    [letter] = bench.rows(dead_letters)
    assert letter.reason == "crashed"
    assert "crashed 2 times while it ran, the last time: its child process" in letter.detail
    assert "exit code 9" in letter.detail


def test_the_crash_of_an_untracked_suspect_is_on_record(bench: Bench) -> None:
    handle = cut_off(bench, Untracked(what="exit"))
    bench.worker(engine="test")
    until(lambda: bench.rows(jobs, jobs.c.id == handle.id))
    assert (handle.status().state, handle.status().crashes) == ("scheduled", 2)


def test_an_untracked_suspect_that_succeeds_leaves_no_record(bench: Bench) -> None:
    cut_off(bench, Untracked(what="fine"))
    bench.worker(engine="test")
    until(bench.idle)
    assert bench.rows(jobs) == []
    assert bench.rows(suspect_runs) == []


def test_deaths_of_workers_do_not_count_against_an_untracked_suspect_that_runs_apart(bench: Bench) -> None:
    [handle] = bench.producer.enqueue_many([Untracked(what="fine")])
    for deliveries in range(1, 6):
        consumer = MemoryConsumer(bench.broker, ["ex"])
        [delivery] = consumer.fetch(1, 1)
        assert delivery.deliveries == deliveries
        if deliveries > 1:
            assert begin_untracked(bench.database, handle.id, deliveries) == deliveries - 2
        consumer.die()
    bench.worker(engine="test")
    until(bench.idle)
    assert bench.rows(jobs) == [], "it succeeded, and no crash is on record"
    assert bench.rows(suspect_runs) == []


def test_an_untracked_suspect_that_runs_with_the_others_is_not_spared(bench: Bench) -> None:
    [handle] = bench.producer.enqueue_many([Untracked(what="fine")])
    for deliveries in range(1, 4):  # as many as `max_crashes`
        consumer = MemoryConsumer(bench.broker, ["ex"])
        assert len(consumer.fetch(1, 1)) == 1
        begin_untracked(bench.database, handle.id, deliveries)
        end(bench.database, handle.id, 0)
        consumer.die()
    bench.worker(engine="test")
    until(lambda: bench.rows(dead_letters))
    assert (handle.status().state, handle.status().error) == ("dead", "its worker crashed 3 times while it ran")


def test_an_untracked_job_is_no_suspect_at_its_first_delivery_that_may_be_a_release(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MemoryConsumer, "counts_releases", True)
    cut = cut_off_all(bench, *[Untracked(what="fine", folder=str(tmp_path))] * 2)
    consumer = MemoryConsumer(bench.broker, ["ex"])
    [again] = consumer.fetch(1, 1)
    consumer.die()
    bench.worker(engine="test")
    until(bench.idle)
    by_id = {handle.id: int((tmp_path / f"{handle.id}.done").read_text()) for handle in cut}
    suspect = again.envelope.id
    assert by_id.pop(suspect) != os.getpid(), "its third delivery"
    assert list(by_id.values()) == [os.getpid()], "its second delivery"
    assert bench.rows(jobs) == bench.rows(suspect_runs) == []


def test_an_isolated_suspect_that_kills_its_child_has_failed_as_ever(bench: Bench) -> None:
    status = run(bench, Isolated(what="exit"))
    assert (status.state, status.failures, status.crashes) == ("retrying", 1, 1)
    assert [run.job_id for run in bench.rows(suspect_runs)] == [status.id], "a death of its worker would not count"


@pytest.mark.parametrize("kind", [Hurried, HurriedFunction])
@pytest.mark.parametrize("what", ["heeds", "deaf"])
def test_a_suspect_past_its_timeout_has_failed(bench: Bench, kind: type[Suspect], what: str) -> None:
    status = run(bench, kind(what=what))
    assert (status.state, status.failures, status.crashes) == ("dead", 1, 1)
    assert "longer than its timeout" in status.error


@BOTH
def test_a_cancelled_suspect_stops_as_in_the_worker(bench: Bench, tmp_path: Path, kind: type[Suspect]) -> None:
    handle = cut_off(bench, kind(what="sleep", folder=str(tmp_path)))
    bench.worker(engine="test")
    until((tmp_path / "pid").exists)
    handle.cancel()
    assert handle.wait(WAIT_SECONDS).state == "cancelled"
    assert (tmp_path / "cancelled").exists()
    assert handle.status().crashes == 1


def test_the_death_of_a_worker_does_not_count_against_its_suspects(bench: Bench, tmp_path: Path) -> None:
    handles = cut_off_all(bench, *[Coroutine(what="sleep", folder=str(tmp_path))] * (_FEW + 1))
    bench.worker(engine="test")
    until(lambda: len(bench.rows(suspect_runs)) == len(handles), "those that wait are on record, too")
    until((tmp_path / "pid").exists)
    for handle in handles:
        [row] = bench.rows(jobs, jobs.c.id == handle.id)
        again = bench.database.read(lambda connection, row=row: spare(connection, row))
        assert (row.state, row.crashes, again) == ("running", 1, True)


@BOTH
def test_a_suspect_is_given_back_when_its_worker_drains(bench: Bench, tmp_path: Path, kind: type[Suspect]) -> None:
    handle = cut_off(bench, kind(what="sleep", folder=str(tmp_path)))
    worker = bench.worker(engine="test")
    until((tmp_path / "pid").exists)
    worker.stop(0)
    bench.workers.remove(worker)
    assert (tmp_path / "cancelled").exists()
    assert outcomes(bench, handle) == ["crashed", "interrupted"]
    assert (handle.status().state, handle.status().crashes) == ("queued", 1)


def test_a_shutdown_that_signals_all_processes_ends_no_suspect(bench: Bench, tmp_path: Path) -> None:
    handle = cut_off(bench, Coroutine(what="wait", folder=str(tmp_path)))
    bench.worker(engine="test")
    until((tmp_path / "pid").exists)
    until(lambda: (tmp_path / "pid").read_text())
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGTERM)
    (tmp_path / "go").touch()
    assert handle.wait(WAIT_SECONDS).state == "succeeded"


def test_a_suspect_without_a_child_process_waits(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*arguments: Any) -> None:
        raise NoChildProcess("no child process could be started: OSError(11)")

    monkeypatch.setattr(Children, "start", refuse)
    status = run(bench, Coroutine(what="fine"))
    assert (status.state, status.failures, status.crashes) == ("scheduled", 0, 1)
    assert "no child process" in status.error


class Here(Job, kind="suspect.here", queue="ex"): ...


class Elsewhere(Job, kind="suspect.elsewhere", queue="ex"): ...


@pytest.fixture
def local_handlers() -> Iterator[None]:
    """Handlers that no module has which a child could import."""

    @handles(Here)
    async def run_here(job: Here) -> int:
        return os.getpid()

    async def run_elsewhere(job: Elsewhere) -> int:
        return os.getpid()

    run_elsewhere.__module__, run_elsewhere.__qualname__ = "not_importable", "run_elsewhere"
    handles(Elsewhere)(run_elsewhere)
    yield
    handlers.discard(registry["suspect.here"])
    handlers.discard(registry["suspect.elsewhere"])


@pytest.mark.usefixtures("local_handlers")
@pytest.mark.parametrize("kind", [Here, Elsewhere])
def test_a_suspect_that_no_child_can_run_runs_in_the_worker(
    bench: Bench, caplog: pytest.LogCaptureFixture, kind: type[Job]
) -> None:
    caplog.set_level(logging.WARNING, "penstock.executor")
    cut = cut_off_all(bench, *[kind()] * 3)
    bench.worker(engine="test")
    assert [handle.wait(WAIT_SECONDS).result for handle in cut] == [os.getpid()] * 3
    assert bench.rows(suspect_runs) == [], "the death of their worker counts again"
    assert caplog.text.count("a child process cannot run them") == 1


def test_a_suspect_gets_the_resource_that_a_test_has_replaced(bench: Bench) -> None:
    with override(suspect_jobs.Desk, suspect_jobs.Desk(7)):
        assert run(bench, Coroutine(what="fine")).result == [os.getpid(), 7]


def test_the_inline_engine_runs_suspects_in_its_process(bench: Bench) -> None:
    handle = cut_off(bench, Coroutine(what="fine"))
    bench.worker()
    assert handle.wait(WAIT_SECONDS).result[0] == os.getpid()


def test_the_log_of_a_suspect_says_that_it_runs_apart(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "penstock.executor")
    status = run(bench, Coroutine(what="fine"))
    assert (
        f"job {status.id} (suspect.async) runs in a process of its own: 1 of its runs ended in a crash" in caplog.text
    )
