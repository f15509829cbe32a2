"""The executor over a broker in memory and a real ledger: the outcome of a job, whatever its handler does."""

from __future__ import annotations

import asyncio
import os
import time
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from support.ledgers import set_up
from support.polling import WAIT_SECONDS, until
from workers.executor.bench import (
    Add,
    Bench,
    Brief,
    Do,
    DoInThread,
    DoIsolated,
    Ledge,
    Seen,
    Write,
    WriteAsync,
    gate,
    open_bench,
    seen,
)

from penstock.config.settings import Settings
from penstock.ledger.queries.status import Progress
from penstock.ledger.rows.attempts import history
from penstock.ledger.sql.tables import dead_letters, jobs
from penstock.schemas import Job
from penstock.schemas.wire.codec import encode
from penstock.workers import Context, JobCancelled, handles, override


def test_a_job_runs_with_its_typed_message_and_leaves_result_and_progress(bench: Bench) -> None:
    bench.worker()
    status = bench.run(Add(a=1, b=2))
    assert (status.state, status.result, status.attempt) == ("succeeded", {"sum": 3}, 1)
    assert status.progress == Progress(1, 2, "half way")
    assert status.worker == bench.workers[0].name
    [attempt] = bench.rows(history, history.c.job_id == status.id)
    assert (attempt.number, attempt.outcome, attempt.worker) == (1, "succeeded", bench.workers[0].name)
    until(bench.idle)


def test_a_failure_waits_for_its_retry_with_the_traceback_kept(bench: Bench) -> None:
    bench.worker()
    status = bench.run(Do(what="fail"))
    assert (status.state, status.failures, status.error) == ("retrying", 1, "ValueError: boom")
    assert status.due_at is not None
    [attempt] = bench.rows(history, history.c.job_id == status.id)
    assert "raise ValueError" in attempt.traceback
    until(bench.idle)


def test_the_last_failure_makes_a_dead_letter(bench: Bench) -> None:
    bench.worker()
    handle = bench.producer.enqueue(Do(what="fail"))
    for failures in (1, 2):
        until(lambda failures=failures: handle.status().failures == failures)
        bench.broker.send([encode(Do(what="fail"), id=handle.id, attempt=failures + 1, fence=failures)])
    status = handle.wait(WAIT_SECONDS)
    assert (status.state, status.failures, status.attempt) == ("dead", 3, 3)
    [letter] = bench.rows(dead_letters)
    assert (letter.id, letter.reason, letter.kind) == (handle.id, "failed", "ex.do")
    assert "3 of 3" in letter.detail


@pytest.mark.parametrize(("what", "reason"), [("permanent", "permanent"), ("lookup", "failed")])
def test_a_permanent_failure_is_dead_at_once(bench: Bench, what: str, reason: str) -> None:
    bench.worker()
    status = bench.run(Do(what=what))
    assert (status.state, status.failures) == ("dead", 1)
    assert bench.rows(dead_letters)[0].reason == reason


def test_a_snooze_costs_no_attempt_and_a_foreseen_retry_does(bench: Bench) -> None:
    bench.worker()
    soon, later = datetime.now(UTC) + timedelta(minutes=50), datetime.now(UTC) + timedelta(minutes=70)
    snoozed = bench.run(Do(what="snooze"))
    assert (snoozed.state, snoozed.failures, snoozed.attempt) == ("scheduled", 0, 0)
    assert soon < snoozed.due_at < later
    retried = bench.run(Do(what="retry"))
    assert (retried.state, retried.failures, retried.error) == ("retrying", 1, "come back later")
    assert soon < retried.due_at < later


def test_a_discarded_job_ends_without_a_dead_letter(bench: Bench) -> None:
    bench.worker()
    status = bench.run(Do(what="discard"))
    assert (status.state, status.error) == ("discarded", "nothing to do")
    assert bench.rows(dead_letters) == []


def test_a_handler_that_exits_or_returns_nonsense_fails_its_job_and_not_the_worker(bench: Bench) -> None:
    bench.worker()
    assert "SystemExit" in bench.run(Do(what="exit")).error
    assert "not a JSON value" in bench.run(Do(what="unserialisable")).error
    assert bench.run(Add(a=1, b=1)).state == "succeeded"


def test_a_plain_function_runs_in_a_thread(bench: Bench) -> None:
    bench.worker()
    assert "handler" in bench.run(DoInThread(what="name")).result


def test_an_isolated_handler_runs_in_a_child_process(bench: Bench) -> None:
    bench.worker()
    status = bench.run(DoIsolated(what="fine"))
    assert status.result["pid"] != os.getpid()
    assert status.progress == Progress(1, 1, "in a child")


@pytest.mark.parametrize(
    ("what", "error"),
    [("memory", "memory cap of 300000000"), ("die", "SIGKILL"), ("fail", "ValueError: boom in a child")],
)
def test_a_child_that_fails_says_how(bench: Bench, what: str, error: str) -> None:
    bench.worker()
    status = bench.run(DoIsolated(what=what))
    assert status.state == "retrying"
    assert error in status.error


def test_an_attempt_past_its_timeout_is_a_failure(bench: Bench) -> None:
    bench.worker()
    status = bench.run(Brief(mode="async"))
    assert status.state == "retrying"
    assert "timeout of 0.2 s" in status.error


@pytest.mark.parametrize("job", [Do(what="sleep"), DoInThread(what="loop"), DoIsolated(what="sleep")])
def test_a_running_job_is_cancelled_through_its_handle(bench: Bench, job: Job) -> None:
    bench.worker()
    handle = bench.producer.enqueue(job)
    until(lambda: handle.status().state == "running")
    handle.cancel()
    assert handle.wait(WAIT_SECONDS).state == "cancelled"
    until(bench.idle)


def test_a_job_cancelled_before_it_runs_never_runs(bench: Bench) -> None:
    handle = bench.producer.enqueue(Seen(name="never"))
    assert handle.cancel() == "cancelled"
    bench.worker()
    until(bench.idle)
    assert handle.status().state == "cancelled"
    assert seen == []


def test_jobs_enqueued_by_a_handler_leave_only_if_it_succeeds(bench: Bench) -> None:
    bench.worker()
    bench.run(Do(what="enqueue and fail"))
    assert bench.rows(jobs, jobs.c.kind == "ex.add") == []
    bench.run(Do(what="enqueue"))
    [row] = bench.rows(jobs, jobs.c.kind == "ex.add")
    assert (row.state, row.payload) == ("scheduled", '{"a": 1, "b": 1}')


def test_a_resource_is_opened_once_and_closed_with_the_worker(bench: Bench) -> None:
    before = (Ledge.opened, Ledge.closed)
    worker = bench.worker()
    for _ in range(3):
        assert bench.run(Do(what="ledge")).result == "Ledge"
    assert (Ledge.opened, Ledge.closed) == (before[0] + 1, before[1])
    worker.stop()
    bench.workers.clear()
    assert Ledge.closed == before[1] + 1


def test_a_resource_is_replaceable_in_a_test(bench: Bench) -> None:
    class Fake: ...

    bench.worker()
    with override(Ledge, Fake()):
        assert bench.run(Do(what="ledge")).result == "Fake"


def test_higher_priorities_run_first(bench: Bench) -> None:
    for name, priority in [("c", "low"), ("b", "normal"), ("a", "high")]:
        bench.producer.enqueue(Seen(name=name), priority=priority)  # type: ignore[arg-type]
    bench.worker(concurrency=1)
    until(lambda: len(seen) == 3)
    assert seen == ["a", "b", "c"]


def test_an_expired_job_is_discarded_unrun(bench: Bench) -> None:
    handle = bench.producer.enqueue(Seen(name="late"), expires_in=0.01)
    until(lambda: datetime.now(UTC) > handle_time(handle.id) + timedelta(seconds=0.02))
    bench.worker()
    assert handle.wait(WAIT_SECONDS).state == "discarded"
    assert "expired" in str(handle.status().error)
    assert seen == []


def handle_time(job_id: str) -> datetime:
    from penstock.schemas.wire.ids import made_at

    at = made_at(job_id)
    assert at is not None
    return at


def test_jobs_run_once_each_in_batches(bench: Bench) -> None:
    bench.worker(concurrency=50)
    handles_ = bench.producer.enqueue_many([Seen(name=str(number)) for number in range(2000)])
    until(lambda: len(seen) >= 2000 and bench.idle())
    assert sorted(seen, key=int) == [str(number) for number in range(2000)]
    assert {handle.status().state for handle in handles_[::100]} == {"succeeded"}


def test_a_thread_that_raises_job_cancelled_by_itself_has_failed(bench: Bench) -> None:
    with pytest.raises(JobCancelled):
        context = Context(job_id="x")
        context.cancel()
        context.check_cancelled()


def test_a_handlers_transaction_commits_with_its_outcome_and_only_then(bench: Bench) -> None:
    with bench.database.engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE effects (job TEXT, attempt INTEGER)"))
    bench.worker()

    def effects() -> int:
        return int(bench.database.read(lambda connection: connection.scalar(sa.text("SELECT count(*) FROM effects"))))

    assert bench.run(Write(what="fail")).state == "retrying"
    assert bench.run(WriteAsync(what="fail")).state == "retrying"
    assert effects() == 0
    assert bench.run(Write(what="fine")).state == "succeeded"
    assert bench.run(WriteAsync(what="fine")).state == "succeeded"
    assert effects() == 2


def test_a_handlers_transaction_is_rolled_back_when_another_worker_has_claimed_the_job(bench: Bench) -> None:
    with bench.database.engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE effects (job TEXT, attempt INTEGER)"))
    bench.worker()
    handle = bench.producer.enqueue(Write(what="gate"))
    until(lambda: handle.status().state == "running")
    take_over = sa.update(jobs).values(fence=jobs.c.fence + 1, worker="another, dead by now")
    bench.database.write(lambda connection: connection.execute(take_over))
    gate.set()
    # The late one is released to the broker, and delivered again.
    until(lambda: handle.status().state == "succeeded")
    assert handle.status().crashes == 1
    assert bench.database.read(lambda connection: connection.scalar(sa.text("SELECT count(*) FROM effects"))) == 1


AT_A_TIME = 8
holders: list[str] = []


class HoldInThread(Job, kind="ex.hold.thread", queue="ex"):
    """Keeps its connection until all the others have started."""


class HoldInCoroutine(Job, kind="ex.hold.async", queue="ex"):
    """The same."""


@handles(HoldInThread)
def hold_in_thread(job: HoldInThread, ctx: Context) -> None:
    holders.append(ctx.job_id)
    ctx.session.execute(sa.text("SELECT 1"))
    while len(holders) < AT_A_TIME:
        time.sleep(0.01)


@handles(HoldInCoroutine)
async def hold_in_coroutine(job: HoldInCoroutine, ctx: Context) -> None:
    holders.append(ctx.job_id)
    await ctx.session.execute(sa.text("SELECT 1"))
    while len(holders) < AT_A_TIME:  # noqa: ASYNC110  # by the others
        await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("server", "kind"),
    [
        ("sqlite", HoldInThread),
        ("sqlite", HoldInCoroutine),
        pytest.param("postgres", HoldInThread, marks=pytest.mark.postgres),
        pytest.param("postgres", HoldInCoroutine, marks=pytest.mark.postgres),
        pytest.param("mariadb", HoldInThread, marks=pytest.mark.mariadb),  # it has no sessions of coroutines
    ],
)
def test_handlers_wait_for_one_of_few_connections_and_fail_no_attempt(
    server: str, kind: type[Job], request: pytest.FixtureRequest
) -> None:
    holders.clear()
    url = set_up(str(request.getfixturevalue(f"{server}_url")))
    with open_bench(Settings(database_url=url, session_connections=2)) as bench:
        sent = [bench.producer.enqueue(kind()) for _ in range(AT_A_TIME)]
        bench.worker(concurrency=AT_A_TIME)
        ends = [handle.wait(WAIT_SECONDS) for handle in sent]
        assert {(end.state, end.attempt, end.failures) for end in ends} == {("succeeded", 1, 0)}
        assert sorted(holders) == sorted(handle.id for handle in sent)
