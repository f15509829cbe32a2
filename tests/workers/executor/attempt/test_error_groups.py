"""Groups of errors out of handlers, such as those of a TaskGroup: the retry policy is obeyed in each mode."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from workers.executor.bench import Bench

from penstock.ledger.sql.tables import dead_letters
from penstock.schemas import Job, RetryPolicy
from penstock.workers import NotDone, Permanent, handles


class RateLimited(Exception):
    def __init__(self, retry_after: float) -> None:
        super().__init__(f"come back in {retry_after:g} s")
        self.retry_after = retry_after


POLICY = RetryPolicy(max_attempts=5, give_up_on=LookupError)


class Base(Job):
    what: str


class Coroutine(Base, kind="group.async", queue="ex", retry=POLICY): ...


class Thread(Base, kind="group.thread", queue="ex", retry=POLICY): ...


class Child(Base, kind="group.child", queue="ex", retry=POLICY, timeout=60): ...


def fail(what: str) -> None:
    inner: list[Exception]
    match what:
        case "permanent":
            inner = [ValueError("first"), Permanent("will not mend")]
        case "give up on":
            inner = [ValueError("first"), KeyError("gone")]
        case "behind":
            error = NotDone("not sent")
            error.__cause__ = ExceptionGroup("inner", [KeyError("gone")])
            inner = [error]
        case _:
            inner = [ValueError("first"), RateLimited(60), RateLimited(3600)]
    raise ExceptionGroup("outer", [ExceptionGroup("middle", inner)])


@handles(Coroutine)
async def coroutine(job: Coroutine) -> None:
    fail(job.what)


@handles(Thread)
def thread(job: Thread) -> None:
    fail(job.what)


@handles(Child, isolate=True)
def child(job: Child) -> None:
    fail(job.what)


MODES = pytest.mark.parametrize("job", [Coroutine, Thread, Child])


@MODES
@pytest.mark.parametrize(
    ("what", "reason"), [("permanent", "permanent"), ("give up on", "failed"), ("behind", "failed")]
)
def test_an_error_in_a_group_that_is_never_retried_is_dead_at_once(
    bench: Bench, job: type[Base], what: str, reason: str
) -> None:
    bench.worker()
    status = bench.run(job(what=what))
    assert (status.state, status.failures) == ("dead", 1)
    assert bench.rows(dead_letters)[0].reason == reason


@MODES
def test_the_longest_wait_in_a_group_is_obeyed(bench: Bench, job: type[Base]) -> None:
    bench.worker()
    start = datetime.now(UTC)
    status = bench.run(job(what="wait"))
    assert status.state == "retrying"
    assert status.due_at > start + timedelta(seconds=3599)
