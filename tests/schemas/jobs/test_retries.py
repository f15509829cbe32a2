from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.schemas import RetryPolicy

AGE = timedelta(minutes=1)
NESTED = {"by_error": {OSError: RetryPolicy(by_error={ConnectionError: RetryPolicy()})}}


@given(failures=st.integers(1, 10_000), factor=st.floats(1, 10))
def test_a_delay_lies_between_zero_and_the_cap(failures: int, factor: float) -> None:
    policy = RetryPolicy(first_delay=1, factor=factor, max_delay=60)
    assert timedelta(0) <= policy.delay(failures) <= timedelta(seconds=60)


def test_delays_without_jitter_double_up_to_the_cap() -> None:
    policy = RetryPolicy(first_delay=1, factor=2, max_delay=5, jitter=False)
    assert [policy.delay(n).total_seconds() for n in range(1, 6)] == [1, 2, 4, 5, 5]


def test_full_jitter_spreads_over_the_whole_range() -> None:
    policy = RetryPolicy(first_delay=10, factor=1)
    delays = [policy.delay(1).total_seconds() for _ in range(500)]
    assert min(delays) < 2
    assert max(delays) > 8


def test_a_policy_gives_up_on_attempts_age_and_named_errors() -> None:
    policy = RetryPolicy(max_attempts=3, max_age=timedelta(hours=1), give_up_on=ValueError)
    young, old = timedelta(minutes=1), timedelta(hours=2)
    assert policy.exhausted_reason(KeyError, 1, young) is None
    assert "3 of 3" in str(policy.exhausted_reason(KeyError, 3, young))
    assert "max_age" in str(policy.exhausted_reason(KeyError, 1, old))
    assert "ValueError" in str(policy.exhausted_reason(ValueError, 1, young))
    assert "UnicodeError" in str(policy.exhausted_reason(UnicodeError, 1, young))


def test_the_policy_of_the_nearest_class_counts_and_is_completed_by_the_general_one() -> None:
    policy = RetryPolicy(
        max_attempts=8,
        first_delay=7,
        jitter=False,
        by_error={OSError: RetryPolicy(max_attempts=2), ConnectionError: RetryPolicy(first_delay=60, factor=1)},
    )
    assert policy.exhausted_reason(FileNotFoundError, 2, AGE) == "failed 2 of 2 attempts"
    assert policy.exhausted_reason(ConnectionResetError, 7, AGE) is None
    assert policy.exhausted_reason(ConnectionResetError, 8, AGE) == "failed 8 of 8 attempts"
    assert policy.for_error(ConnectionResetError).delay(5) == timedelta(minutes=1)
    assert policy.for_error(FileNotFoundError).delay(1) == timedelta(seconds=7)
    assert policy.for_error(KeyError) is policy
    assert policy.for_error(None) is policy


def test_a_nearer_class_with_a_policy_overrides_give_up_on() -> None:
    policy = RetryPolicy(give_up_on=(OSError, ZeroDivisionError), by_error={ConnectionError: RetryPolicy()})
    assert policy.exhausted_reason(ConnectionResetError, 1, AGE) is None
    assert "FileNotFoundError" in str(policy.exhausted_reason(FileNotFoundError, 1, AGE))
    further = RetryPolicy(give_up_on=ConnectionError, by_error={OSError: RetryPolicy(max_attempts=50)})
    assert "ConnectionResetError" in str(further.exhausted_reason(ConnectionResetError, 1, AGE))


def test_a_wait_that_was_asked_for_is_never_cut_short() -> None:
    policy = RetryPolicy(max_attempts=50, first_delay=10, factor=1, jitter=False, max_age=3600, max_retry_after=600)
    assert policy.wait(1, asked=timedelta(seconds=30)) == timedelta(seconds=30)
    assert policy.wait(1, asked=timedelta(seconds=3)) == timedelta(seconds=10)
    assert policy.exhausted_reason(OSError, 1, AGE, timedelta(seconds=600)) is None
    assert "max_retry_after" in str(policy.exhausted_reason(OSError, 1, AGE, timedelta(seconds=601)))
    assert policy.exhausted_reason(None, 1, AGE, timedelta(seconds=601)) is None  # the handler's own Retry(after=…)
    assert "max_age" in str(policy.exhausted_reason(OSError, 1, timedelta(seconds=3100), timedelta(seconds=501)))


def test_the_last_try_is_within_max_age() -> None:
    policy = RetryPolicy(first_delay=600, jitter=False, max_age=3600)
    assert policy.wait(1, age=timedelta(seconds=3000)) == timedelta(seconds=600)
    assert policy.wait(1, age=timedelta(seconds=3500)) == timedelta(seconds=100)


@pytest.mark.parametrize("options", [{"max_attempts": 0}, {"factor": 0.5}, {"first_delay": -1}, {"tries": 3}, NESTED])
def test_a_policy_that_makes_no_sense_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        RetryPolicy(**options)
