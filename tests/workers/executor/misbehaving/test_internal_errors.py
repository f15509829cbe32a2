"""Errors of Penstock's own on a job's way: the job gets an outcome, and its slot is free again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from support.polling import until
from workers.executor.bench import Add, Bench, Untracked

from penstock.ledger.sql.tables import attempts
from penstock.schemas import State
from penstock.workers.executor import claiming, recorder
from penstock.workers.executor.admission import Admission
from penstock.workers.executor.attempt.run import AttemptRunner


def failing_once(original: Callable[..., Any]) -> Callable[..., Any]:
    """The function, but its first call raises."""
    calls: list[int] = []

    def call(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise ZeroDivisionError("ours")
        return original(*arguments, **options)

    return call


@pytest.mark.parametrize("job", [Add(a=1, b=2), Untracked()], ids=["tracked", "untracked"])
def test_an_internal_error_of_an_attempt_is_an_attempt_that_failed(
    bench: Bench, job: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(AttemptRunner, "run", failing_once(AttemptRunner.run))
    bench.worker(concurrency=1)
    handle = bench.producer.enqueue(job)
    until(lambda: handle.status().state == State.RETRYING)
    [attempt] = bench.rows(attempts)
    assert attempt.error == "internal_error: ZeroDivisionError: ours"
    assert "in call" in attempt.traceback
    assert f"job {handle.id} met an internal error" in caplog.text
    assert bench.run(Add(a=1, b=2)).state == State.SUCCEEDED


def test_a_delivery_that_cannot_be_admitted_is_given_back_and_runs(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("penstock.workers.executor.admission._REJECT_SECONDS", 0.01)
    monkeypatch.setattr(Admission, "admit", failing_once(Admission.admit))
    bench.worker()
    assert bench.run(Add(a=1, b=2)).state == State.SUCCEEDED
    assert "cannot be admitted and is given back" in caplog.text
    until(bench.idle)


def test_jobs_that_meet_an_internal_error_after_their_claim_are_attempts_that_failed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claiming, "asks_of_keys", failing_once(claiming.asks_of_keys))
    bench.worker()
    handle = bench.producer.enqueue(Add(a=1, b=2))
    until(lambda: handle.status().state == State.RETRYING)
    assert [row.error for row in bench.rows(attempts)] == ["internal_error: ZeroDivisionError: ours"]
    until(bench.idle)


def test_an_internal_error_while_outcomes_are_recorded_fails_their_attempts(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(recorder.Recorder, "_record", failing_once(recorder.Recorder._record))
    bench.worker()
    handle = bench.producer.enqueue(Add(a=1, b=2))
    until(lambda: handle.status().state == State.RETRYING)
    assert [row.error for row in bench.rows(attempts)] == ["internal_error: ZeroDivisionError: ours"]
    assert "internal error when their outcomes were recorded" in caplog.text
    until(bench.idle)


def test_a_job_whose_outcome_cannot_be_recorded_at_all_stays_with_the_broker(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(recorder.Recorder, "_record", refuse)
    monkeypatch.setattr(recorder, "record", refuse)
    worker = bench.worker()
    bench.producer.enqueue(Untracked())
    until(lambda: "outcomes cannot be recorded; this process ends" in caplog.text)
    until(lambda: worker.executor.wait_for_capacity(0) == worker.executor.prefetch)
    assert worker.consumer.unsettled  # type: ignore[attr-defined]
