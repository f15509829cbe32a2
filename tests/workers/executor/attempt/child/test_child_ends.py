"""Ends of isolated handlers: each is one attempt of its own job, under the kind's policy, with a clear error."""

from __future__ import annotations

import pytest
from workers.executor.attempt.child.isolated_jobs import Run
from workers.executor.bench import Add, Bench

from penstock.ledger.rows.attempts import history
from penstock.ledger.sql.tables import dead_letters


@pytest.mark.parametrize(
    ("case", "error"),
    [
        ("sys_exit", "RuntimeError: the handler raised SystemExit: 3"),
        ("os_exit", "ended with exit code 3 and no result"),
        ("os_exit_255", "ended with exit code 255 and no result"),
        ("exit_in_thread", "ended with exit code 4 and no result"),
        ("keyboard_interrupt", "the handler raised KeyboardInterrupt"),
        ("stop_iteration", "StopIteration: 1"),
        ("cancelled_error", "the handler raised CancelledError"),
        ("odd_error", "Odd"),
        ("odd_text", "ValueError: NUL \N{REPLACEMENT CHARACTER}, half ?, long"),
        ("not_json", "TypeError: its result object is not a JSON value"),
        ("not_a_number", "TypeError: its result dict is not a JSON value: it holds nan"),
        ("recursive", "TypeError: its result list is not a JSON value"),
        ("real_time_signal", "was killed by signal"),
    ],
)
def test_any_end_is_a_failed_attempt_of_that_job_alone(bench: Bench, case: str, error: str) -> None:
    bench.worker()
    status = bench.run(Run(case=case))
    assert (status.state, status.failures) == ("retrying", 1)
    assert error in status.error
    assert len(status.error) <= 2000
    assert bench.run(Add(a=1, b=1)).state == "succeeded"


@pytest.mark.parametrize(
    ("case", "state", "error"),
    [
        ("snooze", "scheduled", "not yet"),
        ("retry", "retrying", "come back later"),
        ("discard", "discarded", "nothing to do"),
        ("closed_streams", "succeeded", None),
    ],
)
def test_returned_values_are_obeyed(bench: Bench, case: str, state: str, error: str | None) -> None:
    bench.worker()
    status = bench.run(Run(case=case))
    assert (status.state, status.error) == (state, error)


@pytest.mark.parametrize(("case", "reason"), [("permanent", "permanent"), ("local_error", "failed")])
def test_an_error_that_is_not_retried_is_dead_at_once(bench: Bench, case: str, reason: str) -> None:
    bench.worker()
    status = bench.run(Run(case=case))
    assert (status.state, status.failures) == ("dead", 1)
    assert bench.rows(dead_letters)[0].reason == reason


def test_the_traceback_of_a_child_is_kept(bench: Bench) -> None:
    bench.worker()
    status = bench.run(Run(case="stop_iteration"))
    [attempt] = bench.rows(history, history.c.job_id == status.id)
    assert "raise StopIteration(1)" in attempt.traceback
