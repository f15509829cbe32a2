"""Isolated handlers over the executor: jobs and results of any size, and programs that need a process of their own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from workers.executor.attempt.child.isolated_jobs import Echo, Run
from workers.executor.bench import Bench

from penstock.ledger.queries.status import Progress
from penstock.producers import Producer


@pytest.fixture(params=["uvloop", "asyncio"])
def loop(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The event loop of the worker."""
    if request.param == "asyncio":
        monkeypatch.setitem(sys.modules, "uvloop", None)
    else:
        pytest.importorskip("uvloop")
    return str(request.param)


@pytest.fixture
def storing(bench: Bench, tmp_path: Path) -> Bench:
    """A bench for large jobs and results."""
    bench.settings = bench.settings.model_copy(update={"storage_url": f"file:{tmp_path}/storage"})
    bench.producer.close()
    bench.producer = Producer(
        "redis://unused", sender=bench.broker, database_url=bench.settings.database_url, max_payload_bytes=10**8
    )
    return bench


@pytest.mark.parametrize("size", [0, 100_000, 300_000, 20_000_000])
def test_a_result_of_any_size_crosses_the_pipe(storing: Bench, loop: str, size: int) -> None:
    storing.worker()
    status = storing.run(Echo(text="x", times=size))
    assert (status.state, status.error) == ("succeeded", None)


def test_a_large_job_reaches_its_handler(storing: Bench, loop: str) -> None:
    storing.worker()
    text = "grüße " * 1_000_000
    status = storing.run(Echo(text=text, times=0))
    assert (status.state, status.result) == ("succeeded", "")


def test_results_of_several_children_at_a_time_arrive_complete(storing: Bench, loop: str) -> None:
    storing.worker()
    handles = [storing.producer.enqueue(Echo(text=letter, times=30_000)) for letter in "abcdefgh"]
    assert [handle.wait(120).result for handle in handles] == [letter * 30_000 for letter in "abcdefgh"]


@pytest.mark.parametrize(
    "case",
    ["asyncio_run", "asgiref", "django_orm", "process", "pool", "forkserver_pool", "own_signals", "fork"],
)
def test_a_plain_function_runs_as_in_a_program_of_its_own(bench: Bench, tmp_path: Path, case: str) -> None:
    if case in ("asgiref", "django_orm"):
        pytest.importorskip("django")
    bench.worker()
    status = bench.run(Run(case=case, file=f"{tmp_path}/file"))
    assert (status.state, status.result, status.error) == ("succeeded", "ran", None)


def test_the_context_of_a_child_is_that_of_its_job(bench: Bench) -> None:
    bench.worker()
    status = bench.run(Run(case="details"), tenant="acme")
    assert status.result[1:] == [1, True, "acme"]
    assert status.result[0] == status.enqueued_at.isoformat()


def test_odd_progress_is_refused_at_the_call_and_later_progress_arrives(bench: Bench) -> None:
    bench.worker()
    status = bench.run(Run(case="odd_progress"))
    assert (status.result, status.progress) == (4, Progress(1, 2, "fine"))
