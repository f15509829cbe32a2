"""Handlers that misbehave: each ends as one attempt of its job, as the kind's policy says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from penstock.producers import Producer
from penstock.producers.testing import testing
from penstock.schemas import Job, RetryPolicy
from penstock.workers import Context, Discard, NotDone, Permanent, Retry, Snooze, handles
from penstock.workers.executor.attempt.outcome import one_line
from penstock.workers.handlers.returns import underlying_error, underlying_errors

NAN = float("nan")


class Fatal(Exception): ...


class RateLimited(Exception):
    retry_after = 90


class Unprintable(Exception):
    def __str__(self) -> str:
        raise ValueError("not even this")

    __repr__ = __str__


class Unprintably(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)

    __repr__ = __str__


class Batch(ExceptionGroup[Exception]): ...


POLICY = RetryPolicy(max_attempts=3, give_up_on=(Fatal,), by_error={RateLimited: RetryPolicy(max_attempts=50)})


def group(*errors: Exception) -> ExceptionGroup[Exception]:
    return ExceptionGroup("several", errors)


def endless() -> NotDone:
    first, second = NotDone("a"), NotDone("b")
    first.__cause__, second.__cause__ = second, first
    return first


def caused(cause: Exception) -> NotDone:
    error = NotDone("it did not happen")
    error.__cause__ = cause
    return error


CASES: dict[str, tuple[Callable[[], Any], str, str]] = {
    "permanent in a group": (lambda: group(KeyError("x"), Permanent("no")), "dead", "ExceptionGroup: several"),
    "permanent deep in a group": (lambda: group(group(ValueError()), group(Permanent("no"))), "dead", "ExceptionGroup"),
    "given up in a group": (lambda: group(KeyError("x"), group(Fatal("no"))), "dead", "ExceptionGroup: several"),
    "given up behind a NotDone": (lambda: caused(group(Fatal("no"))), "dead", "NotDone: it did not happen"),
    "a group that is tried again": (lambda: group(KeyError("x"), RateLimited()), "retry", "ExceptionGroup: several"),
    "errors that cause each other": (endless, "retry", "NotDone: a"),
    "no text": (Unprintable, "retry", "Unprintable (its __str__ raised ValueError)"),
    "a text that ends the program": (Unprintably, "retry", "Unprintably (its __str__ raised SystemExit)"),
    "no text in a group": (lambda: group(Unprintable()), "retry", "ExceptionGroup: several"),
}

RESULTS: dict[str, Callable[[], Any]] = {
    "nan": lambda: NAN,
    "infinity deep inside": lambda: {"a": [None, {"b": -float("inf")}]},
    "half a surrogate pair": lambda: "\ud800",
    "bytes that are not text": lambda: b"\xff",
    "a number too long": lambda: 10**4300,
    "too deep": lambda: nested(250),
    "a cycle": lambda: cycle(),
    "an object": object,
}


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def cycle() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


class Misbehave(Job, kind="outcomes.coroutine", retry=POLICY):
    case: str


class MisbehaveInThread(Misbehave, kind="outcomes.thread", retry=POLICY): ...


class MisbehaveInChild(Misbehave, kind="outcomes.child", retry=POLICY): ...


def misbehave(case: str, ctx: Context) -> Any:
    if case in CASES:
        raise CASES[case][0]()
    if case in RESULTS:
        return RESULTS[case]()
    done, total, note = PROGRESS[case]
    try:
        ctx.progress(done, total, note)
    except (TypeError, ValueError) as error:
        return Discard(f"{type(error).__name__}: {error}")
    return "accepted"


PROGRESS: dict[str, tuple[Any, Any, Any]] = {
    "a path for a note": (1, 2, Path("/data/a.csv")),
    "bytes for a note": (1, 2, b"x"),
    "a float": (0.5, None, None),
    "nan": (NAN, None, None),
    "a text": ("1", None, None),
    "none": (None, None, None),
    "a flag": (True, None, None),
    "negative": (-1, None, None),
    "more than 64 bits": (2**63, None, None),
    "a float for a total": (1, 2.0, None),
    "a negative total": (1, -2, None),
    "a total over 64 bits": (1, 2**64, None),
}
PROGRESS = {f"progress: {name}": values for name, values in PROGRESS.items()}


@handles(Misbehave)
async def in_coroutine(job: Misbehave, ctx: Context) -> Any:
    return misbehave(job.case, ctx)


@handles(MisbehaveInThread)
def in_thread(job: MisbehaveInThread, ctx: Context) -> Any:
    return misbehave(job.case, ctx)


@handles(MisbehaveInChild, isolate=True)
def in_child(job: MisbehaveInChild, ctx: Context) -> Any:
    return misbehave(job.case, ctx)


KINDS = [Misbehave, MisbehaveInThread, MisbehaveInChild]


@pytest.fixture
def run() -> Iterator[Callable[[Job], Any]]:
    producer = Producer("redis://unused")
    with testing() as kit:

        def run_once(job: Job) -> Any:
            producer.enqueue(job)
            [attempt] = kit.drain(raising=False, limit=2)
            return attempt

        yield run_once


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", KINDS)
def test_an_odd_error_ends_one_attempt_as_the_policy_says(kind: type[Misbehave], case: str, run: Any) -> None:
    _, outcome, text = CASES[case]
    attempt = run(kind(case=case))
    assert (str(attempt.outcome), attempt.error.startswith(text)) == (outcome, True), attempt


@pytest.mark.parametrize("case", RESULTS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_result_that_json_cannot_hold_fails_the_attempt(kind: type[Misbehave], case: str, run: Any) -> None:
    attempt = run(kind(case=case))
    assert (str(attempt.outcome), attempt.result) == ("retry", None)
    assert attempt.error


@pytest.mark.parametrize("case", PROGRESS)
@pytest.mark.parametrize("kind", KINDS)
def test_odd_progress_is_refused_at_the_call(kind: type[Misbehave], case: str, run: Any) -> None:
    attempt = run(kind(case=case))
    assert str(attempt.outcome) == "discarded"
    assert "Error: ctx.progress: " in attempt.error


class Notes:
    def __init__(self) -> None:
        self.reported: list[tuple[Any, ...]] = []

    def progress(self, *values: Any) -> None:
        self.reported.append(values)


YEARS = timedelta(days=36_526)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Snooze(-1), "delay must not be negative, as -1 is"),
        (lambda: Snooze(NAN), "delay must be at most a hundred years, not nan"),
        (lambda: Snooze(float("inf")), "delay must be at most a hundred years, not inf"),
        (lambda: Snooze(10**400), "delay must be at most a hundred years"),
        (lambda: Snooze(YEARS), "delay must be at most a hundred years"),
        (lambda: Snooze("60"), "delay must be a timedelta or a number of seconds, not '60'"),  # type: ignore[arg-type]
        (lambda: Snooze(None), "give delay or until"),  # type: ignore[arg-type]
        (lambda: Snooze(until=datetime(2026, 1, 1)), "has no time zone"),
        (lambda: Snooze(until=datetime.max.replace(tzinfo=UTC)), "until must lie at most a hundred years ahead"),
        (lambda: Snooze(60, reason={"a": 1}), "reason must be text, not {'a': 1}"),  # type: ignore[arg-type]
        (lambda: Retry(-1), "after must not be negative, as -1 is"),
        (lambda: Retry(timedelta.max), "after must be at most a hundred years"),
        (lambda: Retry(60, reason=None), "reason must be text, not None"),  # type: ignore[arg-type]
        (lambda: Discard(5), "reason must be text, not 5"),  # type: ignore[arg-type]
    ],
)
def test_a_wrong_wait_or_reason_is_refused_at_the_call(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError) as refused:
        make()
    assert message in str(refused.value)


def test_waits_within_a_hundred_years_are_taken() -> None:
    assert Snooze().delay == Snooze(until=datetime.now(UTC) - YEARS).delay == timedelta(0)
    assert Snooze(timedelta(days=36_525)).delay == timedelta(days=36_525)
    assert (Retry().after, Retry(0.5).after) == (None, timedelta(seconds=0.5))


def test_progress_within_its_bounds_is_reported() -> None:
    notes = Notes()
    context = Context(job_id="j", sink=notes)
    context.progress(0)
    context.progress(2**63 - 1, 2**63 - 1, "x" * 300)
    context.progress(1, None, "a\0b\ud800")
    first, (_, done, total, note), last = notes.reported
    assert first == ("j", 0, None, None)
    assert (done, total, len(note), note[:100]) == (2**63 - 1, 2**63 - 1, 255, "x" * 100)
    assert last == ("j", 1, None, "a\N{REPLACEMENT CHARACTER}b?")


def test_the_error_that_decides_is_the_one_that_leaves_the_fewest_retries() -> None:
    fatal, limited, other = Fatal(), RateLimited(), KeyError()
    assert underlying_error(group(limited, other), POLICY) is other  # three attempts, not fifty
    assert underlying_error(group(other, group(limited, fatal)), POLICY) is fatal
    permanent = Permanent()
    assert underlying_error(group(fatal, caused(permanent)), POLICY) is permanent
    assert underlying_errors(group(limited, group(other, caused(fatal)))) == [limited, other, fatal]


def test_a_policy_that_names_a_class_of_groups_decides_about_the_group() -> None:
    policy = RetryPolicy(give_up_on=(Batch,), by_error={RateLimited: RetryPolicy(max_delay=timedelta(seconds=1))})
    batch = Batch("b", [RateLimited()])
    assert underlying_error(batch, policy) is batch
    assert isinstance(underlying_error(group(RateLimited()), policy), RateLimited)


def test_an_error_without_a_text_has_a_line() -> None:
    assert one_line(KeyError()) == "KeyError"
    assert one_line(Unprintable()) == "Unprintable (its __str__ raised ValueError)"
