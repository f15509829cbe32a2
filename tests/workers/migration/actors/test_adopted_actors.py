"""The example application of Dramatiq's, unchanged, under its own worker and under ours."""

from __future__ import annotations

import signal
from collections.abc import Sequence

import pytest
import sqlalchemy as sa
from adopted_shop import AdoptedShop
from support.polling import until

from penstock.ledger.sql import tables
from penstock.ledger.transitions.cancel import request_cancel

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.mark.parametrize(
    ("broker", "options"),
    [("redis", ()), pytest.param("rabbitmq", (), marks=pytest.mark.rabbitmq), ("redis", ("--pool", "processes"))],
    indirect=["broker"],
    ids=["redis", "rabbitmq", "processes"],
)
def test_actors_do_the_same_under_our_worker(shop: AdoptedShop, options: Sequence[str]) -> None:
    shop.adopt(*options)
    expected = shop.call("answer = [web.send_all(), web.EXPECTED]")
    assert expected[0] == 42
    shop.notes(*expected[1])

    # Failures are on record, the retries of Dramatiq's middleware as attempts.
    def letters() -> dict[str, str]:
        return {letter.kind: letter.detail for letter in shop.stack.letters("failed")}

    until(lambda: len(letters()) == 4, "the dead letters")
    assert letters() == {
        "endless": "RuntimeError: TimeLimitExceeded (the actor's retries are exhausted: max_retries = 0)",
        "forbidden": "PermissionError: not for this customer (PermissionError is among the actor's throws)",
        "offer": "SkipMessage: Message age limit exceeded (a middleware has failed the message)",
        "refused": "ValueError: order a9 has no address (the actor's retries are exhausted: max_retries = 1)",
    }
    [refused] = [letter for letter in shop.stack.letters("failed") if letter.kind == "refused"]
    assert attempts(shop, refused.id) == [("retry", True), ("dead", True)]
    # Prometheus counts, and its process serves.
    counted = f'dramatiq_messages_total{{actor_name="flaky",queue_name="{shop.mails}"}} 3.0'
    until(lambda: counted in shop.metrics(), "metrics")


def attempts(shop: AdoptedShop, job_id: str) -> list[tuple[str, bool]]:
    """The outcome of each attempt of a job, and whether the actor's own line is in its traceback."""
    where = sa.select(tables.attempts).where(tables.attempts.c.job_id == job_id).order_by(tables.attempts.c.number)
    rows = shop.stack.database.read(lambda connection: connection.execute(where).all())
    return [(row.outcome, "has no address" in row.traceback) for row in rows]


@pytest.mark.parametrize("broker", ["redis"], indirect=True)
def test_an_actor_is_notified_of_the_shutdown(shop: AdoptedShop) -> None:
    """And tried again, by Dramatiq's rules."""
    worker = shop.work()
    message_id = shop.call(
        "from penstock.producers.contrib.dramatiq import adopt\nadopt(actors.broker)\n"
        "answer = actors.newsletter.send(1).message_id",
        **shop.penstock(),
    )
    shop.notes(["newsletter", 1])
    assert shop.stack.stop_process(worker) == 0
    shop.notes(["newsletter", 1], ["interrupted", 1])
    assert (shop.stack.row(message_id).state, shop.stack.row(message_id).error) == ("retrying", "Shutdown")


@pytest.mark.parametrize("broker", ["redis"], indirect=True)
@pytest.mark.parametrize("pool", ["threads", "processes"])
def test_cancelling_interrupts_an_actor_that_runs(shop: AdoptedShop, pool: str) -> None:
    shop.work("--pool", pool)
    message_id = shop.call(
        "from penstock.producers.contrib.dramatiq import adopt\nadopt(actors.broker)\n"
        "answer = actors.newsletter.send(1).message_id",
        **shop.penstock(),
    )
    shop.notes(["newsletter", 1])
    request_cancel(shop.stack.database, message_id)
    until(lambda: shop.stack.row(message_id).state == "cancelled", "its state")
    shop.notes(["newsletter", 1], ["interrupted", 1])


def test_the_example_runs_under_its_own_worker(shop: AdoptedShop) -> None:
    shop.consume()
    answer, expected = shop.call("answer = [web.send_all(), web.EXPECTED]")
    assert answer == 42
    shop.notes(*expected)


def test_a_killed_worker_loses_no_message(shop: AdoptedShop) -> None:
    """Here the web backend sends straight to our queues."""
    first = shop.adopt("--concurrency", "2")
    shop.call(
        "from penstock.producers.contrib.dramatiq import adopt\n"
        "adopt(actors.broker)\n"
        "answer = [actors.count.send(number).message_id for number in range(200)]",
        **shop.penstock(),
    )
    until(lambda: len(shop.noted()) > 20, "some runs")
    shop.stack.stop_process(first, signal.SIGKILL)
    assert len(shop.noted()) < 200
    shop.work()
    until(lambda: {number for _, number in shop.noted()} == set(range(200)), "all 200")
