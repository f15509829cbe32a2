"""The executor over a broker in memory and a real ledger: what becomes of a job, whatever its handler does."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from pydantic import BaseModel
from support.polling import WAIT_SECONDS, until

from penstock.config.settings import Settings
from penstock.ledger.queries.status import Progress
from penstock.ledger.rows.attempts import history
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import dead_letters, jobs
from penstock.ledger.sql.upgrade import upgrade
from penstock.producers import Producer
from penstock.producers.senders.memory import MemoryBroker
from penstock.schemas import Job, RetryPolicy, State
from penstock.schemas.wire.codec import Envelope, encode
from penstock.workers import Context, Discard, JobCancelled, Permanent, Retry, Snooze, handles, override, provides
from penstock.workers.brokers.memory import MemoryConsumer
from penstock.workers.engines.worker import Worker


class Add(Job, kind="ex.add", queue="ex"):
    a: int
    b: int


class Sum(BaseModel):
    sum: int


class Do(Job, kind="ex.do", queue="ex", retry=RetryPolicy(max_attempts=3, give_up_on=LookupError)):
    what: str


class DoInThread(Job, kind="ex.thread", queue="ex", timeout=30):
    what: str


class DoIsolated(Job, kind="ex.child", queue="ex", timeout=20):
    what: str


class Brief(Job, kind="ex.brief", queue="ex", timeout=0.2):
    mode: str


class Untracked(Job, kind="ex.untracked", queue="ex", track=False):
    what: str = "fine"


class Once(Job, kind="ex.once", queue="ex", delivery="once"):
    name: str


class AtMostOnce(Job, kind="ex.atmostonce", queue="ex", delivery="at_most_once"):
    name: str


class Seen(Job, kind="ex.seen", queue="ex"):
    name: str


class Write(Job, kind="ex.write", queue="ex"):
    what: str


class WriteAsync(Job, kind="ex.writeasync", queue="ex"):
    what: str


class NoHandler(Job, kind="ex.nohandler", queue="ex"): ...


class Ledge:
    """A resource that counts how often it was opened and closed."""

    opened = closed = 0


@provides
def open_ledge(settings: Settings) -> Iterator[Ledge]:
    Ledge.opened += 1
    yield Ledge()
    Ledge.closed += 1


seen: list[str] = []
gate = threading.Event()


@handles(Add)
async def add(job: Add, ctx: Context) -> Sum:
    ctx.progress(1, 2, "half way")
    return Sum(sum=job.a + job.b)


@handles(Do)
async def do(job: Do, ctx: Context, ledge: Ledge) -> Any:
    match job.what:
        case "fail":
            raise ValueError("boom")
        case "lookup":
            raise KeyError("gone")
        case "permanent":
            raise Permanent("will not mend")
        case "retry":
            return Retry(after=3600, reason="come back later")
        case "snooze":
            return Snooze(timedelta(hours=1), reason="not yet")
        case "discard":
            return Discard("nothing to do")
        case "exit":
            raise SystemExit(3)
        case "unserialisable":
            return object()
        case "enqueue":
            ctx.enqueue(Add(a=1, b=1))
        case "enqueue and fail":
            ctx.enqueue(Add(a=1, b=1))
            raise ValueError("boom")
        case "sleep":
            await asyncio.sleep(3600)
        case "ledge":
            return type(ledge).__name__
    return None


@handles(DoInThread)
def do_in_thread(job: DoInThread, ctx: Context) -> str:
    match job.what:
        case "loop":
            while not ctx.cancelled:
                time.sleep(0.005)
            ctx.check_cancelled()
        case "gate":
            assert gate.wait(WAIT_SECONDS)
    return threading.current_thread().name


@handles(DoIsolated, isolate=True, memory_bytes=300_000_000)
def do_isolated(job: DoIsolated, ctx: Context) -> dict[str, int]:
    ctx.progress(1, 1, "in a child")
    match job.what:
        case "memory":
            bytearray(2_000_000_000)
        case "die":
            os.kill(os.getpid(), 9)
        case "fail":
            raise ValueError("boom in a child")
        case "sleep":
            time.sleep(3600)
    return {"pid": os.getpid()}


@handles(Brief)
async def brief(job: Brief) -> None:
    await asyncio.sleep(3600)


@handles(Untracked)
async def untracked(job: Untracked) -> None:
    if job.what == "fail":
        raise ValueError("boom")


@handles(Once)
async def once(job: Once) -> None:
    seen.append(job.name)


@handles(AtMostOnce)
async def at_most_once(job: AtMostOnce) -> None:
    seen.append(job.name)
    await asyncio.sleep(3600)


@handles(Seen)
async def note(job: Seen) -> None:
    seen.append(job.name)


INSERT = sa.text("INSERT INTO effects VALUES (:job, :attempt)")


@handles(Write)
def write(job: Write, ctx: Context) -> None:
    if job.what == "gate":
        assert gate.wait(WAIT_SECONDS)
    ctx.session.execute(INSERT, {"job": ctx.job_id, "attempt": ctx.attempt})
    if job.what == "fail":
        raise ValueError("boom")


@handles(WriteAsync)
async def write_async(job: WriteAsync, ctx: Context) -> None:
    await ctx.session.execute(INSERT, {"job": ctx.job_id, "attempt": ctx.attempt})
    if job.what == "fail":
        raise ValueError("boom")


class Bench:
    """A worker, its broker and its producer."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.database = Database(settings.database_url)
        upgrade(self.database)
        self.broker = MemoryBroker()
        self.producer = Producer("redis://unused", sender=self.broker, database_url=settings.database_url)
        self.workers: list[Worker] = []

    def worker(self, concurrency: int = 10, start: bool = True) -> Worker:
        worker = Worker(
            self.settings,
            engine="inline",
            queues=["ex"],
            concurrency=concurrency,
            consumer=MemoryConsumer(self.broker, ["ex"]),
        )
        self.workers.append(worker)
        if start:
            worker.start()
        return worker

    def run(self, job: Job, **options: Any) -> Any:
        """The status of a job when it is no longer on its way."""
        handle = self.producer.enqueue(job, **options)
        until(lambda: handle.status().state not in (State.QUEUED, State.RUNNING))
        return handle.status()

    def rows(self, table: sa.FromClause, *where: Any) -> list[Any]:
        return list(self.database.read(lambda connection: connection.execute(sa.select(table).where(*where)).all()))

    def idle(self) -> bool:
        waiting = self.broker.depths(["ex"])["ex"]
        return not waiting and not any(worker.consumer.unsettled for worker in self.workers)  # type: ignore[attr-defined]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    seen.clear()
    gate.clear()
    bench = Bench(Settings(database_url=f"sqlite:///{tmp_path}/ledger.db", lease_seconds=2, grace_seconds=5))
    yield bench
    gate.set()
    for worker in bench.workers:
        worker.stop()
    bench.producer.close()
    bench.database.close()


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


@pytest.mark.parametrize(
    ("envelope", "reason"),
    [
        (Envelope("ex", "normal", {"task": "ex.none", "id": "u1"}, b"[[],{},{}]"), "unknown_kind"),
        (Envelope("ex", "normal", {"task": "ex.add", "id": "u2"}, b'[[],{"a":1},{}]'), "invalid_payload"),
        (Envelope("ex", "normal", {"task": "ex.add", "id": "u3"}, b"\x00\xff"), "undecodable"),
        (Envelope("ex", "normal", {}, b"rubbish"), "undecodable"),
        (encode(NoHandler(), id="u4"), "no_handler"),
    ],
)
def test_a_message_that_cannot_run_becomes_a_dead_letter_with_its_bytes(
    bench: Bench, envelope: Envelope, reason: str
) -> None:
    bench.worker()
    bench.broker.send([envelope])
    until(bench.idle)
    [letter] = bench.rows(dead_letters)
    assert letter.reason == reason
    assert letter.raw == envelope.body
    if envelope.id:
        assert bench.producer.handle(envelope.id).status().state == "dead"


def test_a_kind_that_is_not_tracked_leaves_only_its_failures(bench: Bench) -> None:
    bench.worker()
    bench.producer.enqueue(Untracked())
    until(bench.idle)
    assert bench.rows(jobs) == []
    status = bench.run(Untracked(what="fail"))
    assert (status.state, status.failures) == ("retrying", 1)
    bench.broker.send([encode(Untracked(), id=status.id, attempt=2, fence=1)])
    until(lambda: bench.producer.handle(status.id).status().state == "succeeded")


def test_a_duplicate_of_a_finished_job_is_not_run_again(bench: Bench) -> None:
    bench.worker()
    envelope = encode(Once(name="pay"))
    bench.broker.send([envelope])
    until(lambda: seen == ["pay"] and bench.idle())
    bench.broker.send([envelope, envelope])
    until(bench.idle)
    assert seen == ["pay"]


def test_a_duplicate_of_a_running_job_is_dropped_and_a_redelivery_of_it_is_settled_with_it(bench: Bench) -> None:
    worker = bench.worker()
    envelope = encode(DoInThread(what="gate"))
    bench.broker.send([envelope])
    handle = bench.producer.handle(envelope.id)
    until(lambda: handle.status().state == "running")
    bench.broker.send([envelope])
    until(lambda: len(worker.consumer.unsettled) == 1 and not bench.broker.depths(["ex"])["ex"])  # type: ignore[attr-defined]
    worker.consumer.die()  # type: ignore[attr-defined]  # the connection is lost and made anew
    until(lambda: len(worker.consumer.unsettled) == 1)  # type: ignore[attr-defined]
    gate.set()
    assert handle.wait(WAIT_SECONDS).state == "succeeded"
    until(bench.idle)
    assert len(bench.rows(history)) == 1


def test_an_observer_that_fails_harms_no_job(bench: Bench) -> None:
    class Failing:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError(name)

    worker = bench.worker(start=False)
    worker.executor.observers.append(Failing())  # type: ignore[arg-type]
    worker.start()
    assert bench.run(Add(a=1, b=2)).result == {"sum": 3}


def test_an_at_most_once_job_is_acknowledged_before_it_runs(bench: Bench) -> None:
    worker = bench.worker()
    bench.producer.enqueue(AtMostOnce(name="shot"))
    until(lambda: seen == ["shot"])
    assert not worker.consumer.unsettled  # type: ignore[attr-defined]


def test_draining_finishes_what_runs_and_gives_back_the_rest(bench: Bench) -> None:
    worker = bench.worker(concurrency=1)
    running = bench.producer.enqueue(DoInThread(what="gate"))
    until(lambda: running.status().state == "running")
    waiting = [bench.producer.enqueue(Seen(name=str(number))) for number in range(3)]
    stopper = threading.Thread(target=worker.stop, args=(WAIT_SECONDS,))
    stopper.start()
    bench.workers.clear()
    gate.set()
    stopper.join()
    assert running.status().state == "succeeded"
    assert bench.broker.depths(["ex"])["ex"] == 3
    bench.worker()
    assert [handle.wait(WAIT_SECONDS).state for handle in waiting] == ["succeeded"] * 3
    assert seen == ["0", "1", "2"]


def test_a_job_that_outlasts_the_grace_goes_back_without_a_lost_attempt(bench: Bench) -> None:
    worker = bench.worker()
    handle = bench.producer.enqueue(Do(what="sleep"))
    until(lambda: handle.status().state == "running")
    worker.stop(0.05)
    bench.workers.clear()
    status = handle.status()
    assert (status.state, status.failures, status.attempt) == ("queued", 0, 0)
    assert bench.broker.depths(["ex"])["ex"] == 1
    bench.worker()
    until(lambda: handle.status().state == "running")
    assert handle.status().attempt == 1
    handle.cancel()
    handle.wait(WAIT_SECONDS)


def test_a_job_that_crashes_its_worker_too_often_is_quarantined(bench: Bench) -> None:
    """Three workers die under it: each claims it and is never heard of again."""
    handle = bench.producer.enqueue(Seen(name="poison"))
    from penstock.ledger.transitions.claim import Wanted, claim
    from penstock.schemas.wire.codec import decode

    consumer = MemoryConsumer(bench.broker, ["ex"])
    for crash in range(3):
        [delivery] = consumer.fetch(1, 1)
        wanted = Wanted(decode(delivery.envelope), delivery.deliveries > 1, 3)
        [claimed] = claim(bench.database, [wanted], worker=f"dead-{crash}")
        assert claimed.crashes == crash  # type: ignore[union-attr]
        consumer.die()
    bench.worker()
    status = handle.wait(WAIT_SECONDS)
    assert (status.state, status.crashes, status.failures) == ("dead", 3, 0)
    assert bench.rows(dead_letters)[0].reason == "crashed"
    assert seen == []
    outcomes = [row.outcome for row in bench.rows(history, history.c.job_id == handle.id)]
    assert outcomes.count("crashed") == 3


def test_a_broker_outage_loses_nothing(bench: Bench) -> None:
    bench.worker()
    bench.broker.down = True
    time_of_outage = time.monotonic()
    until(lambda: time.monotonic() > time_of_outage + 0.2)
    assert bench.workers[0].executor.ready
    bench.broker.down = False
    assert bench.run(Add(a=1, b=2)).result == {"sum": 3}


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
    # The late one is given back to the broker, and delivered again.
    until(lambda: handle.status().state == "succeeded")
    assert handle.status().crashes == 1
    assert bench.database.read(lambda connection: connection.scalar(sa.text("SELECT count(*) FROM effects"))) == 1
