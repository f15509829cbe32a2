"""Logs of isolated handlers arrive through their worker; their resources are opened and closed in the child."""

from __future__ import annotations

import logging

import pytest
from workers.executor.attempt.child.isolated_jobs import Open, Run
from workers.executor.bench import Bench


@pytest.fixture(autouse=True)
def _levels(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


def records(caplog: pytest.LogCaptureFixture, job_id: str) -> list[logging.LogRecord]:
    """Records with a job's id, without those of the worker's own loggers."""
    return [
        record
        for record in caplog.records
        if getattr(record, "job_id", None) == job_id
        and not record.name.startswith(("penstock.executor", "penstock.jobs"))
    ]


def test_standard_logging_and_ctx_log_arrive_with_the_jobs_id(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.worker()
    status = bench.run(Run(case="logs"))
    lines = records(caplog, status.id)
    assert [(line.name, line.levelname, line.getMessage().splitlines()[0]) for line in lines] == [
        ("iso.standard", "INFO", "an ordinary line"),
        ("penstock.job.iso.run", "WARNING", "a line of ctx.log"),
        ("iso.standard", "ERROR", "with a traceback"),
    ]
    assert "ValueError: logged" in lines[2].getMessage()
    assert [line.attempt for line in lines] == [1, 1, 1]  # type: ignore[attr-defined]
    assert type(lines[0].colour) is str  # type: ignore[attr-defined]


def test_levels_of_the_workers_loggers_hold_in_the_child(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "iso.standard")
    bench.worker()
    status = bench.run(Run(case="logs"))
    assert "below the worker's level" in [record.getMessage() for record in records(caplog, status.id)]


def test_lines_of_several_threads_arrive_complete(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.worker()
    status = bench.run(Run(case="many_logs"))
    assert status.error is None
    lines = [record.getMessage() for record in records(caplog, status.id)]
    assert sorted(lines) == sorted(f"line {name} {number}" for name in "abcd" for number in range(500))


def test_a_process_of_the_handlers_does_not_disturb_its_pipe(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.worker()
    status = bench.run(Run(case="log_of_a_process"))
    assert (status.state, status.result) == ("succeeded", 0)
    assert [record.getMessage() for record in records(caplog, status.id)] == ["here"]


@pytest.mark.parametrize(
    ("what", "state", "result"),
    [("", "succeeded", ["Session", True, True]), ("fail", "retrying", None), ("exit", "retrying", None)],
)
def test_resources_are_opened_in_the_child_and_closed_at_any_end(
    bench: Bench, caplog: pytest.LogCaptureFixture, what: str, state: str, result: object
) -> None:
    bench.worker()
    status = bench.run(Open(file="", what=what))
    assert (status.state, status.result) == (state, result)
    closed = [record.getMessage() for record in records(caplog, status.id)]
    assert closed == ["session closed", "ledger closed"]
