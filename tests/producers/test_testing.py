"""The kit for users' tests: what it catches, what its assertions say, what it runs, and how time passes in it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from pydantic import ConfigDict
from sqlalchemy.orm import Session

from penstock.config.errors import (
    BrokerUnavailable,
    DuplicateJob,
    InvalidJob,
    JobFailed,
    KindError,
    PayloadTooLarge,
    UndecodableMessage,
    UnknownQueue,
    WaitTimeout,
)
from penstock.config.settings import ScheduleSettings, Settings
from penstock.producers import AsyncProducer, Producer
from penstock.producers.outbox import Outbox, create_outbox
from penstock.producers.testing import Kit, testing
from penstock.schemas import Job, RetryPolicy, Sensitive
from penstock.workers import Context, Discard, Retry, Snooze, handles, provides
from penstock.workers.engines.inline import Inline

NOWHERE = "redis://127.0.0.1:1/0"
producer = Producer(NOWHERE, timeout=0.2, queues=["listed"])
"""As an app has it: made when its module is imported, long before any test."""
async_producer = AsyncProducer(NOWHERE, timeout=0.2)


class Mailer:
    def __init__(self) -> None:
        self.sent: list[str] = []


@provides
def open_mailer(settings: Settings) -> Iterator[Mailer]:
    raise AssertionError("a test replaces it")
    yield Mailer()


class Invoice(Job, kind="kit.invoice", queue="kit", retry=RetryPolicy(max_attempts=3, first_delay=timedelta(0))):
    n: int
    iban: Sensitive[str] = "DE02"


class Receipt(Job, kind="kit.receipt", queue="kit"):
    n: int
    key: str = ""


class Mail(Job, kind="kit.mail", queue="kit"):
    to: str


class Light(Job, kind="kit.light", queue="kit", track=False, retry=RetryPolicy(max_attempts=2)):
    n: int


class Alone(Job, kind="kit.alone", queue="kit", unique_by=("n",), unique="reject", unique_for=3600):
    n: int


class Latest(Job, kind="kit.latest", queue="kit", unique_by=("n",), unique="debounce", debounce=60):
    n: int
    text: str = ""


class Newest(Job, kind="kit.newest", queue="kit", unique_by=("n",), unique="replace"):
    n: int
    text: str = ""


class Same(Job, kind="kit.same", queue="kit", unique_by=("n",), unique="existing"):
    n: int


class Unhandled(Job, kind="kit.unhandled", queue="kit"): ...


class Lossy(Job, kind="kit.lossy", queue="kit"):
    model_config = ConfigDict(allow_inf_nan=True)
    value: float


class Endless(Job, kind="kit.endless", queue="kit"): ...


class Child(Job, kind="kit.child", queue="kit"): ...


class Says(Job, kind="kit.says", queue="kit", retry=RetryPolicy(max_attempts=2)):
    what: str


class Nightly(Job, kind="kit.nightly", queue="kit"): ...


class Write(Job, kind="kit.write", queue="kit", delivery="once"):
    n: int


things = sa.Table("kit_things", sa.MetaData(), sa.Column("n", sa.Integer))


class Broken(Exception): ...


@handles(Write)
def run_write(job: Write, ctx: Context) -> None:
    ctx.session.execute(sa.insert(things).values(n=job.n))
    if job.n < 0:
        raise Broken


@handles(Invoice)
async def run_invoice(job: Invoice, ctx: Context) -> str:
    if job.n < 0:
        raise Broken(f"invoice {job.n}")
    ctx.enqueue(Receipt(n=job.n))
    return f"invoice {job.n}"


@handles(Receipt)
def run_receipt(job: Receipt) -> int:
    if job.n > 100:
        producer.enqueue(Receipt(n=job.n - 100))
    return job.n


@handles(Mail)
async def run_mail(job: Mail, mailer: Mailer) -> None:
    mailer.sent.append(job.to)


@handles(Light)
async def run_light(job: Light) -> None:
    if job.n < 0:
        raise Broken


@handles(Alone)
@handles(Latest)
@handles(Newest)
@handles(Same)
@handles(Nightly)
async def run_nothing(job: Job) -> None: ...


@handles(Endless)
async def run_endless(job: Endless) -> None:
    await async_producer.enqueue(Endless())


@handles(Child, isolate=True)
def run_child(job: Child) -> int:
    return os.getpid()


@handles(Says)
async def run_says(job: Says) -> Any:
    return {"snooze": Snooze(60), "discard": Discard("no"), "retry": Retry(60, reason="busy")}[job.what]


@pytest.fixture
def penstock_settings() -> Settings:
    return Settings()


def waiting(penstock: Kit) -> list[Job]:
    return [entry.job for entry in penstock.enqueued()]


def at(hours: float) -> datetime:
    return datetime.now(UTC) + timedelta(hours=hours)


# What is caught.


def test_producers_made_before_send_nothing_while_the_block_runs() -> None:
    with testing() as kit:
        producer.enqueue(Invoice(n=1))
        asyncio.run(async_producer.enqueue(Invoice(n=2)))
        with Producer(NOWHERE) as another:
            another.ping()
            another.enqueue_many([Invoice(n=3), Receipt(n=4)])
        assert [entry.job for entry in kit.enqueued()] == [Invoice(n=1), Invoice(n=2), Invoice(n=3), Receipt(n=4)]
    with pytest.raises(BrokerUnavailable):
        producer.enqueue(Invoice(n=5))
    with pytest.raises(BrokerUnavailable):
        asyncio.run(async_producer.enqueue(Invoice(n=5)))


def test_tests_start_with_nothing_enqueued(penstock: Kit) -> None:
    penstock.refute_enqueued()
    with testing() as inner:
        producer.enqueue(Invoice(n=1))
        assert len(inner.enqueued()) == 1
        inner.drain(Receipt)
    producer.enqueue(Invoice(n=2))
    assert [entry.job for entry in penstock.enqueued()] == [Invoice(n=2)]
    penstock.travel(hours=1)  # whose ledger is one that was used before
    assert [entry.job for entry in penstock.enqueued()] == [Invoice(n=2)]


def test_jobs_that_production_refuses_are_refused(penstock: Kit) -> None:
    with pytest.raises(InvalidJob):
        producer.enqueue(Invoice(n=1), run_at=datetime(2030, 1, 1))
    with pytest.raises(UnknownQueue):
        producer.enqueue(Invoice(n=1), queue="no-queue-of-any-test")
    with pytest.raises(PayloadTooLarge):
        producer.enqueue(Mail(to="x" * 300_000))
    with pytest.raises(PayloadTooLarge):
        producer.enqueue_many([Mail(to="a"), Mail(to="x" * 300_000)])
    penstock.refute_enqueued()
    producer.enqueue(Invoice(n=1), queue="listed")
    penstock.assert_enqueued(Invoice, queue="listed")


def test_a_job_that_no_worker_could_read_is_refused(penstock: Kit) -> None:
    with pytest.raises(UndecodableMessage):
        producer.enqueue(Lossy(value=float("nan")))


def test_threads_are_caught(penstock: Kit) -> None:
    threads = [threading.Thread(target=producer.enqueue, args=(Invoice(n=n),)) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(entry.job.n for entry in penstock.enqueued(Invoice)) == list(range(20))  # type: ignore[attr-defined]


def test_a_repeated_id_is_one_job(penstock: Kit) -> None:
    for _ in range(2):
        producer.enqueue(Invoice(n=1), id="a")
    penstock.assert_enqueued(Invoice, count=1)
    penstock.drain(Invoice)
    producer.enqueue(Invoice(n=1), id="a")
    penstock.refute_enqueued(Invoice)


def test_the_inline_engine_keeps_its_own_producer(penstock: Kit) -> None:
    with Inline() as engine:
        assert engine.producer.enqueue(Receipt(n=5)).result(30) == 5
    penstock.refute_enqueued()


# Assertions.


def test_options_are_matched(penstock: Kit) -> None:
    producer.enqueue(Invoice(n=1), delay=3600, priority="high", key="k", tenant="acme")
    producer.enqueue(Receipt(n=2, key="own"))
    entry = penstock.assert_enqueued(
        Invoice, n=1, iban="DE02", delay=timedelta(hours=1), priority="high", key="k", tenant="acme", queue="kit"
    )
    assert (entry.state, entry.delay, entry.job) == ("scheduled", timedelta(hours=1), Invoice(n=1))
    penstock.assert_enqueued(Invoice, run_at=at(1))
    penstock.assert_enqueued(Invoice, run_at=(at(0.5), at(1.5)))
    penstock.assert_enqueued(Invoice(n=1), count=1)
    penstock.assert_enqueued(Receipt, fields={"key": "own"}, delay=0)
    penstock.assert_enqueued(Job, count=2)
    for wrong in (
        {"n": 2},
        {"delay": 3500},
        {"priority": "low"},
        {"key": "other"},
        {"tenant": "b"},
        {"queue": "other"},
        {"run_at": at(2)},
        {"run_at": (at(2), at(3))},
    ):
        penstock.refute_enqueued(Invoice, **wrong)  # type: ignore[arg-type]
        with pytest.raises(AssertionError):
            penstock.assert_enqueued(Invoice, **wrong)  # type: ignore[arg-type]


def test_a_failure_says_what_there_is_instead(penstock: Kit) -> None:
    producer.enqueue(Invoice(n=8), delay=60, tenant="acme")
    producer.enqueue(Receipt(n=3))
    with pytest.raises(AssertionError) as caught:
        penstock.assert_enqueued(Invoice, n=7, iban="geheim", priority="high")
    assert str(caught.value).splitlines() == [
        "no Invoice with n=7, iban='***', priority='high' enqueued",
        "enqueued of Invoice:",
        "  Invoice(n=8, iban='***')  delay=0:01:00  tenant=acme",
        "enqueued of other kinds:",
        "  Receipt(n=3, key='')",
    ]
    with pytest.raises(AssertionError, match="2 instead of 1 Job enqueued"):
        penstock.assert_enqueued(Job, count=1)
    with pytest.raises(AssertionError, match="1 Invoice enqueued, and none was expected") as caught:
        penstock.refute_enqueued(Invoice)
    assert "DE02" not in str(caught.value)


def test_a_failure_says_what_has_run_already(penstock: Kit) -> None:
    producer.enqueue(Receipt(n=3))
    penstock.drain()
    with pytest.raises(AssertionError) as caught:
        penstock.assert_enqueued(Receipt, n=3)
    assert str(caught.value).splitlines()[1:] == [
        "nothing is enqueued",
        "drain() has run:",
        "  Receipt(n=3, key='')  succeeded",
    ]


def test_an_assertion_that_could_never_fail_is_an_error(penstock: Kit) -> None:
    with pytest.raises(TypeError, match="Invoice has no field number; its fields are n, iban"):
        penstock.refute_enqueued(Invoice, number=1)
    with pytest.raises(TypeError, match="is none"):
        penstock.refute_enqueued(Mailer)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="time zone"):
        penstock.refute_enqueued(Invoice, run_at=datetime(2030, 1, 1))
    with pytest.raises(ValueError, match="refute_enqueued"):
        penstock.assert_enqueued(Invoice, count=0)


# Handles.


def test_handles_answer(penstock: Kit) -> None:
    now, later, gone = producer.enqueue_many([Receipt(n=1), Receipt(n=2), Receipt(n=3)])
    delayed = producer.enqueue(Receipt(n=4), delay=60)
    assert (now.status().state, delayed.status().state) == ("queued", "scheduled")
    with pytest.raises(WaitTimeout, match="drain"):
        now.wait()
    assert gone.cancel() == "cancelled"
    delayed.reschedule(delay=7200)
    penstock.assert_enqueued(Receipt, n=4, delay=7200)
    assert [run.result for run in penstock.drain()] == [1, 2]
    assert (now.result(), producer.handle(later.id).result()) == (1, 2)


def test_handles_of_coroutines_answer(penstock: Kit) -> None:
    async def app() -> tuple[Any, str]:
        handle = await async_producer.enqueue(Receipt(n=1), key="k")
        with pytest.raises(WaitTimeout, match="drain"):
            await handle.wait()
        penstock.assert_enqueued(Receipt, n=1)
        penstock.drain()
        other = await async_producer.enqueue(Receipt(n=2), key="k")
        await async_producer.cancel(key="k")
        await async_producer.close()
        return await handle.result(), (await other.status()).state

    assert asyncio.run(app()) == (1, "cancelled")
    penstock.refute_enqueued()


# Running.


def test_drain_runs_handlers_and_what_they_enqueue(penstock: Kit) -> None:
    producer.enqueue(Invoice(n=150))
    producer.enqueue(Receipt(n=1), priority="high")
    runs = penstock.drain()
    assert [(run.job, run.outcome, run.result) for run in runs] == [
        (Receipt(n=1), "succeeded", 1),
        (Invoice(n=150), "succeeded", "invoice 150"),
        (Receipt(n=150), "succeeded", 150),
        (Receipt(n=50), "succeeded", 50),
    ]
    penstock.refute_enqueued()
    assert penstock.drain() == []


def test_drain_of_some_kinds_leaves_the_others(penstock: Kit) -> None:
    producer.enqueue(Unhandled())
    producer.enqueue(Invoice(n=1))
    assert [run.job for run in penstock.drain(Invoice)] == [Invoice(n=1)]
    assert [(entry.job, entry.run_at) for entry in penstock.enqueued()] == [(Unhandled(), None), (Receipt(n=1), None)]
    with pytest.raises(KindError, match=r"'kit\.unhandled' has no handler here"):
        penstock.drain()
    runs = penstock.drain(raising=False)
    assert {(type(run.job), str(run.outcome)) for run in runs} == {(Unhandled, "dead"), (Receipt, "succeeded")}


def test_an_error_of_a_handler_fails_the_test(penstock: Kit) -> None:
    producer.enqueue(Invoice(n=-1))
    producer.enqueue(Receipt(n=1))
    with pytest.raises(Broken, match="invoice -1") as caught:
        penstock.drain()
    assert "run_invoice" in [entry.name for entry in caught.traceback]
    assert caught.value.__notes__ == ["in drain(), at attempt 1 of Invoice(n=-1, iban='***')"]
    assert [entry.state for entry in penstock.enqueued()] == ["retrying", "queued"]


def test_a_retry_waits_for_travel_and_ends_as_its_policy_says(penstock: Kit) -> None:
    handle = producer.enqueue(Invoice(n=-1))
    outcomes = []
    for _ in range(4):
        outcomes.append([(run.attempt, str(run.outcome)) for run in penstock.drain(raising=False)])
        assert penstock.drain() == []
        penstock.travel(hours=2)
    assert outcomes == [[(1, "retry")], [(2, "retry")], [(3, "dead")], []]
    assert handle.status().failures == 3


def test_the_return_value_of_a_handler_is_an_outcome(penstock: Kit) -> None:
    for what in ("snooze", "discard", "retry"):
        producer.enqueue(Says(what=what))
    runs = penstock.drain()
    assert [str(run.outcome) for run in runs] == ["snoozed", "discarded", "retry"]
    assert [run.error for run in runs] == [None, "no", "busy"]
    penstock.assert_enqueued(Says, what="snooze", run_at=at(1 / 60))
    penstock.travel(minutes=2)
    with pytest.raises(JobFailed, match="busy"):
        penstock.drain()


def test_resources_are_replaced(penstock: Kit) -> None:
    mailer = penstock.replace(Mailer, Mailer())
    producer.enqueue(Mail(to="ada"))
    penstock.drain()
    assert mailer.sent == ["ada"]
    with testing(Settings()) as other:
        penstock.replace(Mailer, Mailer())
        producer.enqueue(Mail(to="bob"))
        other.drain()
    assert mailer.sent == ["ada"]


def test_a_resource_that_cannot_be_opened_fails_the_test(penstock: Kit) -> None:
    producer.enqueue(Mail(to="ada"))
    with pytest.raises(JobFailed, match="a test replaces it"):
        penstock.drain()


def test_an_isolated_handler_runs_in_this_process(penstock: Kit) -> None:
    producer.enqueue(Child())
    assert [run.result for run in penstock.drain()] == [os.getpid()]


def test_a_kind_that_is_not_tracked_runs(penstock: Kit) -> None:
    producer.enqueue(Light(n=1))
    producer.enqueue(Light(n=-1))
    assert [(run.job, str(run.outcome)) for run in penstock.drain(raising=False)] == [
        (Light(n=1), "succeeded"),
        (Light(n=-1), "retry"),
    ]
    penstock.travel(hours=1)
    assert [str(run.outcome) for run in penstock.drain(raising=False)] == ["dead"]
    penstock.refute_enqueued()


def test_jobs_without_end_reach_the_limit(penstock: Kit) -> None:
    producer.enqueue(Endless())
    with pytest.raises(WaitTimeout, match=r"has run 5 attempts and more are due, such as a kit\.endless"):
        penstock.drain(limit=5)


def test_a_handlers_own_drain_is_refused(penstock: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Mailer, "sent", property(lambda _: penstock.drain()), raising=False)
    monkeypatch.setattr(Mailer, "__init__", lambda _: None)
    penstock.replace(Mailer, Mailer())
    producer.enqueue(Mail(to="ada"))
    with pytest.raises(RuntimeError, match="under way"):
        penstock.drain()


def test_rows_written_with_the_session_of_a_handler_are_kept(penstock: Kit) -> None:
    engine = sa.create_engine(penstock.database_url)
    things.create(engine)
    producer.enqueue(Write(n=1))
    producer.enqueue(Write(n=-1))
    penstock.drain(raising=False)
    with engine.connect() as connection:
        assert connection.execute(sa.select(things.c.n)).scalars().all() == [1]
    engine.dispose()


def test_the_outbox_is_taken_when_the_test_says_so(penstock: Kit) -> None:
    engine = sa.create_engine("sqlite://")
    create_outbox(engine)
    with Session(engine) as session:
        Outbox().enqueue(session, Receipt(n=1))
        session.rollback()
        Outbox().enqueue(session, Receipt(n=2), delay=60)
        Outbox().enqueue_many(session, [Alone(n=1), Alone(n=1), Light(n=3)])
        penstock.refute_enqueued()
        runs = penstock.take_outbox(session)
        assert [run.job for run in runs] == [Receipt(n=2), Alone(n=1), Light(n=3)] == waiting(penstock)
        penstock.assert_enqueued(Receipt, n=2, delay=60)
        penstock.assert_enqueued(Alone, delay=0)
        assert penstock.take_outbox(session) == []
    assert [run.job for run in penstock.drain()] == [Alone(n=1), Light(n=3)]
    engine.dispose()


# Time.


def test_delays_are_due_when_their_time_is_travelled(penstock: Kit) -> None:
    producer.enqueue(Receipt(n=1), delay=3600)
    producer.enqueue(Receipt(n=2), run_at=at(2))
    penstock.travel(minutes=59)
    assert penstock.drain() == []
    penstock.travel(minutes=2)
    assert [run.job for run in penstock.drain()] == [Receipt(n=1)]
    penstock.assert_enqueued(Receipt, n=2, run_at=at(2))
    penstock.travel_to(at(2) + timedelta(seconds=1))
    assert [run.job for run in penstock.drain()] == [Receipt(n=2)]


def test_absolute_times_are_those_of_the_tests_clock(penstock: Kit) -> None:
    penstock.travel(hours=10)
    producer.enqueue(Receipt(n=1), run_at=at(11))
    producer.enqueue(Receipt(n=2), delay=3600)
    assert len(penstock.enqueued(Receipt, run_at=at(11), delay=3600)) == 2
    assert penstock.drain() == []
    penstock.travel(minutes=61)
    assert len(penstock.drain()) == 2


def test_a_job_expires_when_its_time_is_travelled(penstock: Kit) -> None:
    producer.enqueue(Receipt(n=1), expires_in=60)
    producer.enqueue(Receipt(n=2), expires_in=600)
    penstock.travel(minutes=2)
    assert [str(run.outcome) for run in penstock.drain()] == ["discarded", "succeeded"]


def test_travel_goes_forward(penstock: Kit) -> None:
    with pytest.raises(ValueError, match="forward"):
        penstock.travel(hours=-1)
    with pytest.raises(ValueError, match="already"):
        penstock.travel_to(at(-1))
    with pytest.raises(ValueError, match="time zone"):
        penstock.travel_to(datetime(2100, 1, 1))


def test_schedules_fire_at_the_time_that_is_travelled_to() -> None:
    night = ScheduleSettings(kind="kit.nightly", cron="0 3 * * *", timezone="Europe/Berlin")
    strict = ScheduleSettings(kind="kit.nightly", cron="0 3 * * *", timezone="Europe/Berlin", misfire="skip")
    three = datetime(2100, 1, 10, 2, 0, tzinfo=UTC)  # in Berlin
    with testing(Settings(schedules={"night": night, "strict": strict})) as kit:
        assert kit.drain() == []
        kit.travel_to(three - timedelta(hours=1))
        assert len(kit.drain()) == 1  # the many nights before: one makes up for them, the other skips them
        kit.travel_to(three)
        assert [run.job for run in kit.drain()] == [Nightly(), Nightly()]
        assert kit.drain() == []


def test_a_schedule_that_may_overlap_makes_up_for_each_time() -> None:
    every = {"kind": "kit.nightly", "cron": "0 * * * *", "misfire": "all"}
    allow, skip = ScheduleSettings(overlap="allow", **every), ScheduleSettings(overlap="skip", **every)
    for settings, times in ((allow, 5), (skip, 1)):
        with testing(Settings(schedules={"hourly": settings})) as kit:
            kit.travel(hours=5)
            assert len(kit.drain()) == times


# Unique jobs.


def test_unique_jobs_are_decided_about(penstock: Kit) -> None:
    producer.enqueue(Alone(n=1))
    with pytest.raises(DuplicateJob):
        producer.enqueue(Alone(n=1))
    penstock.assert_enqueued(Alone, count=1, delay=0)
    penstock.drain()
    with pytest.raises(DuplicateJob):
        asyncio.run(async_producer.enqueue(Alone(n=1)))
    penstock.travel(hours=2)
    producer.enqueue(Alone(n=1))
    penstock.assert_enqueued(Alone, count=1)
    first = producer.enqueue(Same(n=1))
    assert producer.enqueue(Same(n=1)).id == first.id
    producer.enqueue(Newest(n=1, text="a"))
    producer.enqueue(Newest(n=1, text="b"))
    assert [entry.job for entry in penstock.enqueued(Newest)] == [Newest(n=1, text="b")]


def test_a_debounced_job_runs_when_it_was_quiet(penstock: Kit) -> None:
    producer.enqueue(Latest(n=1, text="a"))
    penstock.travel(seconds=40)
    producer.enqueue(Latest(n=1, text="b"))
    penstock.travel(seconds=40)
    assert penstock.drain() == []
    penstock.travel(seconds=40)
    assert [run.job for run in penstock.drain()] == [Latest(n=1, text="b")]


# Inline.


def test_inline_runs_each_job_as_it_is_enqueued() -> None:
    with testing(Settings(), inline=True) as kit:
        assert producer.enqueue(Invoice(n=1)).result() == "invoice 1"
        producer.enqueue(Alone(n=1))
        kit.refute_enqueued()
        producer.enqueue(Receipt(n=1), delay=60)
        kit.assert_enqueued(Receipt, count=1)
        with pytest.raises(Broken):
            producer.enqueue(Invoice(n=-1))

        async def app() -> Any:
            handle = await async_producer.enqueue(Receipt(n=7))
            return await handle.result()

        assert asyncio.run(app()) == 7


# The plugin.

PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error"]


def run(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    return done.stdout + done.stderr


def test_pytest_has_the_fixture(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text("""
import pytest
from penstock.config.settings import Settings

@pytest.fixture
def penstock_settings():
    return Settings(prefix="own")
""")
    (tmp_path / "test_app.py").write_text("""
import unittest
from penstock.config.settings import Settings
from penstock.producers import Producer
from penstock.producers.testing import testing
from penstock.schemas import Job
from penstock.workers import handles

producer = Producer("redis://127.0.0.1:1/0")

class Ping(Job, kind="kit.ping"):
    n: int

@handles(Ping)
async def ping(job: Ping, settings: Settings) -> str:
    return f"{settings.prefix} {job.n}"

def test_fixture(penstock):
    producer.enqueue(Ping(n=1))
    penstock.assert_enqueued(Ping, n=1)
    assert [one.result for one in penstock.drain()] == ["own 1"]

def test_failure(penstock):
    producer.enqueue(Ping(n=1))
    penstock.assert_enqueued(Ping, n=2)

class TestOld(unittest.TestCase):
    def setUp(self):
        self.penstock = self.enterContext(testing())

    def test_it(self):
        producer.enqueue(Ping(n=3))
        self.penstock.assert_enqueued(Ping, n=3)
""")
    result = run([*PYTEST, "test_app.py"], tmp_path)
    assert "1 failed, 2 passed" in result
    assert "Ping(n=1)" in result
    assert "matching.py" not in result, "the traceback ends in the test"


def test_a_test_that_does_not_ask_for_it_loads_nothing(tmp_path: Path) -> None:
    (tmp_path / "test_app.py").write_text("""
import sys

def test_it():
    assert "pytest_penstock" in sys.modules
    assert [name for name in sys.modules if name.split(".")[0] in ("penstock", "pydantic", "sqlalchemy")] == []
""")
    assert "1 passed" in run([*PYTEST, "test_app.py", "-p", "no:hypothesispytest"], tmp_path)


def test_memory_needs_no_sql(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("""
import sys
sys.modules["sqlalchemy"] = None
from penstock.config.errors import ConfigError
from penstock.producers import Producer
from penstock.producers.testing import testing
from penstock.schemas import Job

class Ping(Job, kind="kit.ping"):
    n: int

with testing() as penstock:
    Producer("redis://127.0.0.1:1/0").enqueue(Ping(n=1), delay=60)
    penstock.assert_enqueued(Ping, n=1, delay=60)
    try:
        penstock.drain()
    except ConfigError as error:
        print(error)
""")
    assert "install penstock[sql]" in run([sys.executable, "app.py"], tmp_path)
