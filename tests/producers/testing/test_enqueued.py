"""Jobs that the testing kit catches, its assertions and its handles."""

from __future__ import annotations

import asyncio
import threading
from datetime import datetime, timedelta
from typing import Any

import pytest
from producers.testing.kit_jobs import NOWHERE, Invoice, Mail, Mailer, Receipt, async_producer, at, producer
from pydantic import ConfigDict

from penstock.config.errors import (
    BrokerUnavailable,
    InvalidJob,
    PayloadTooLarge,
    UnknownQueue,
    WaitTimeout,
)
from penstock.producers import Producer
from penstock.producers.testing import Kit, testing
from penstock.schemas import Job
from penstock.workers.engines.inline import Inline


class Lossy(Job, kind="kit.lossy", queue="kit"):
    model_config = ConfigDict(allow_inf_nan=True)
    value: float


# Caught jobs.


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
    with pytest.raises(InvalidJob, match="it holds nan"):
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
    penstock.assert_enqueued(Invoice, run_at=entry.run_at)
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
    with pytest.raises(TypeError, match="is not a Job"):
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
