"""The pool of processes: plain handlers in processes that are kept, with their resources and their context."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.polling import WAIT_SECONDS, until
from workers.executor.attempt.pool.pool_jobs import Chosen, InThread, OnLoop, Plain
from workers.executor.bench import Bench

from penstock.ledger.sql.tables import jobs
from penstock.workers.executor.attempt.child import parent


def pids(bench: Bench) -> list[int]:
    """Processes of the pool of the bench's worker."""
    pool = bench.workers[0].executor.attempts.pool
    return [] if pool is None else pool.pids


def results(bench: Bench, *cases: str) -> list[Any]:
    return [bench.run(Plain(case=case)).result for case in cases]


@pytest.fixture
def model_log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """Lines of the model. Ask for it before the bench: processes keep the levels that hold when they start."""
    caplog.set_level(logging.INFO, "pool.model")
    return caplog


def test_processes_are_kept_and_open_their_resources_once(
    model_log: pytest.LogCaptureFixture, pool_bench: Bench, tmp_path: Path
) -> None:
    met = [pool_bench.producer.enqueue(Plain(case="meet", file=str(tmp_path / "met"))) for _ in range(2)]
    assert len({handle.wait(WAIT_SECONDS).result for handle in met}) == 2
    processes = pids(pool_bench)
    uses = results(pool_bench, *["use"] * 6)
    assert {pid for pid, _, _ in uses} <= set(processes)
    assert all(pid == owner for pid, owner, _ in uses)
    assert max(used for _, _, used in uses) > 2
    assert pids(pool_bench) == processes
    pool_bench.workers.pop().stop()
    lines = [record.getMessage() for record in model_log.records if record.name == "pool.model"]
    expected = [f"model {what} in {pid}" for pid in processes for what in ("opened", "closed")]
    assert sorted(lines) == sorted(expected)


def test_coroutines_stay_on_the_loop_and_a_handler_may_choose_threads(pool_bench: Bench) -> None:
    assert pool_bench.run(OnLoop()).result == os.getpid()
    assert pool_bench.run(InThread()).result == os.getpid()
    assert pool_bench.run(Chosen()).result in pids(pool_bench)


def test_a_handler_may_choose_the_pool_of_a_worker_that_has_none(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(pool="threads")
    assert pids(bench) == []
    pid = bench.run(Chosen()).result
    assert pids(bench) == [pid]
    assert bench.run(Chosen()).result == pid
    assert bench.run(InThread()).result == os.getpid()


def test_the_context_works_in_the_pool(pool_bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    handle = pool_bench.producer.enqueue(Plain(case="context"), tenant="acme")
    status = handle.wait(WAIT_SECONDS)
    assert status.result == [1, "acme", True, "done"]
    assert len(pool_bench.rows(jobs, jobs.c.kind == "pool.loop")) == 1
    lines = {record.getMessage(): record for record in caplog.records if "a line of" in record.getMessage()}
    assert len(lines) == 2
    assert all(getattr(record, "job_id", None) == handle.id for record in lines.values())
    [row] = pool_bench.rows(jobs, jobs.c.id == handle.id)
    assert (row.progress_done, row.progress_total, row.progress_note) == (1, 2, "half way")


def test_a_process_has_no_session(pool_bench: Bench) -> None:
    status = pool_bench.run(Plain(case="session"))
    assert "does not run in a process of its own or of the pool" in status.error


@pytest.mark.parametrize(
    ("case", "state", "error"),
    [
        ("none", "succeeded", None),
        ("snooze", "scheduled", "not yet"),
        ("discard", "discarded", "nothing to do"),
        ("retry", "retrying", "come back later"),
        ("fail", "retrying", "ValueError: boom"),
        ("lookup", "dead", "KeyError: 'nothing there'"),
        ("leave", "retrying", "the handler raised SystemExit: 3"),
        ("not JSON", "retrying", "its result object is not a JSON value"),
    ],
)
def test_outcomes_are_those_of_a_thread(pool_bench: Bench, case: str, state: str, error: str | None) -> None:
    status = pool_bench.run(Plain(case=case))
    assert status.state == state
    assert (error is None and status.error is None) or error in status.error


def test_a_job_leaves_nothing_to_the_next_one(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench()
    bench.workers[0].executor.resize(1)
    until(lambda: len(pids(bench)) == 1)
    assert results(bench, "leak", "leak") == [["unset", False]] * 2
    results(bench, "keep")
    late = "the attempt has ended: a thread that its handler left uses its context"
    assert results(bench, "use kept", "fork") == [[late, late], "the handler's"]


def test_the_pool_follows_a_change_of_the_concurrency(pool_bench: Bench) -> None:
    until(lambda: len(pids(pool_bench)) == 2)
    pool_bench.workers[0].executor.resize(3)
    until(lambda: len(pids(pool_bench)) == 3)
    pool_bench.workers[0].executor.resize(1)
    until(lambda: len(pids(pool_bench)) == 1)
    assert results(pool_bench, "none") == [None]


def test_a_function_is_called_first_in_each_process(
    make_bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parent, "_setups", [])
    parent.call_first("workers.executor.attempt.pool.pool_jobs:set_up", "shop", ["a", 1])
    parent.call_first("workers.executor.attempt.pool.pool_jobs:set_up", "shop", ["a", 1])
    assert results(make_bench(), "setups") == [[["shop", ["a", 1]]]]


def test_a_worker_takes_no_jobs_before_its_pool_is_ready(pool_bench: Bench) -> None:
    until(lambda: pool_bench.workers[0].ready)
    assert len(pids(pool_bench)) == 2


def test_handlers_that_cannot_be_loaded_are_logged_and_their_jobs_fail(
    make_bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(parent, "_setups", [])
    parent.call_first("workers.executor.attempt.pool.pool_jobs:no_such_function")
    bench = make_bench()
    status = bench.run(Plain(case="none"))
    assert "has no attribute 'no_such_function'" in status.error
    assert "a process of the pool cannot load its handlers" in caplog.text
