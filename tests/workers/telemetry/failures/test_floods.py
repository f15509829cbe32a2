"""Thousands of failures that are alike: a few lines, and none of them is lost from the count."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest

from penstock.config.supervision import faults
from penstock.workers.telemetry.failures import job_log
from penstock.workers.telemetry.failures.failure import Failure
from penstock.workers.telemetry.failures.job_log import IN_FULL, WINDOW_SECONDS, FailureLog

FAILURE = Failure(
    job_id="j",
    kind="flood.kind",
    queue="q",
    tenant=None,
    attempt=1,
    max_attempts=3,
    outcome="retry",
    reason=None,
    error="ValueError: no\nforged line",
    traceback="Traceback (most recent call last):\nValueError: no\n",
    exception=None,
    fingerprint="f",
    next_attempt_at=None,
    worker="w",
    engine="celery",
)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_of_a_flood_the_first_are_written_in_full_and_the_rest_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    log = FailureLog(clock)
    for second in range(25):
        for number in range(200):
            log.write(replace(FAILURE, job_id=f"{second}-{number}"))
        clock.now += 1
        log.flush()
    log.flush(all=True)
    full = [record for record in caplog.records if not hasattr(record, "alike")]
    counts = [record.alike for record in caplog.records if hasattr(record, "alike")]
    assert len(full) == IN_FULL
    assert all(record.exc_text and record.levelno == logging.WARNING for record in full)
    assert len(counts) == 3, "every ten seconds, and at the end"
    assert sum(counts) + len(full) == 25 * 200
    assert "1,990 more jobs of kind flood.kind failed alike in 10 s, the last of them job 9-199" in caplog.text
    assert all("\n" not in record.getMessage() for record in full), "an error forges no line"


def test_a_flood_that_ends_is_counted_and_the_next_one_begins_in_full(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    log = FailureLog(clock)
    for _ in range(IN_FULL + 5):
        log.write(FAILURE)
    clock.now += WINDOW_SECONDS
    log.flush()
    assert caplog.records[-1].alike == 5  # type: ignore[attr-defined]
    clock.now += WINDOW_SECONDS
    log.flush()
    before = len(caplog.records)
    log.write(FAILURE)
    assert len(caplog.records) == before + 1


def test_deaths_and_other_errors_are_counted_apart_and_their_number_is_bounded(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_log, "_MOST_GROUPS", 3)
    log = FailureLog(Clock())
    for _ in range(IN_FULL + 1):
        log.write(FAILURE)
        log.write(replace(FAILURE, outcome="dead", reason="failed"))
    assert len(caplog.records) == 2 * IN_FULL
    for number in range(10):
        log.write(replace(FAILURE, fingerprint=str(number)))
    assert len(log._floods) == 3
    assert sum(getattr(record, "alike", 0) for record in caplog.records) == 2, "what is forgotten is counted first"
    assert not faults["failure not reported"]
