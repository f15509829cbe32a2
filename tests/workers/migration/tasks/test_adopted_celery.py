"""A Celery application that runs unchanged under a worker of ours."""

from __future__ import annotations

from typing import Any

import pytest
from celery import chain, chord
from celery_example import AdoptedShop
from support.ledgers import attempts_of
from support.polling import WAIT_SECONDS, until

from penstock.producers.contrib.celery import adopt

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


def use(shop: Any) -> list[Any]:
    """Use the application as its web process does, and return the results."""
    results = [
        shop.price.delay(5, copies=2),
        shop.charge.delay(2),
        chain(shop.price.s(2, 3), shop.price.s(4)).apply_async(),
        chord([shop.price.s(1, 2), shop.price.s(3)], shop.total.s()).apply_async(),
        shop.invoice.delay([[100, 2], [250]]),
        shop.discount.delay(7),
        shop.price.apply_async((1,), countdown=0.3),
    ]
    return [result.get(timeout=WAIT_SECONDS) for result in results]


EXPECTED = [10, 2, 24, 5, 450, 14, 1]


def test_its_tasks_do_what_they_do_under_celerys_worker(adopted: AdoptedShop) -> None:
    worker = adopted.start_stock_worker()
    try:
        assert use(adopted.shop) == EXPECTED
    finally:
        worker.terminate()
        worker.wait(WAIT_SECONDS)


def test_its_tasks_run_unchanged_and_are_on_record(adopted: AdoptedShop) -> None:
    adopted.start()
    assert use(adopted.shop) == EXPECTED
    stack, shop = adopted.stack, adopted.shop
    # A retry is the job's own, and so is a replacement.
    retried = shop.charge.delay(2)
    assert retried.get(timeout=WAIT_SECONDS) == 2
    row = until(lambda: (row := stack.row(retried.id)) and row.state == "succeeded" and row)
    assert (row.attempt, row.failures, row.result) == (3, 2, "2")
    failed = attempts_of(stack.database, retried.id)[:2]
    assert {(attempt.outcome, attempt.error) for attempt in failed} == {
        ("retry", "ConnectionError: the bank does not answer")
    }
    replaced = shop.invoice.delay([[1, 2]])
    assert replaced.get(timeout=WAIT_SECONDS) == 2
    until(lambda: stack.row(replaced.id).state == "succeeded")
    assert stack.row(replaced.id).kind == "shop.total"
    # A failure is a dead letter with its traceback, and its error callback runs.
    refused = shop.refuse.apply_async(link_error=shop.apologise.s())
    with pytest.raises(ValueError, match="no such order"):
        refused.get(timeout=WAIT_SECONDS)
    until(lambda: stack.row(refused.id).state == "dead")
    [letter] = stack.letters("failed")
    assert letter.detail == "ValueError: no such order (the task asked for no retry)"
    [attempt] = attempts_of(stack.database, refused.id)
    assert "ValueError: no such order" in attempt.traceback
    until(lambda: f"apology for {refused.id}" in adopted.lines())
    # One that expires is revoked, and one that ignores its result keeps none.
    if stack.broker_url.startswith("redis"):  # RabbitMQ itself drops it from the application's queue
        expired = shop.price.apply_async((1,), expires=-1)
        until(lambda: expired.state == "REVOKED")
    else:
        assert "time_limit of shop.send" in stack.logs()  # longer than RabbitMQ's patience
    ignored = shop.send.delay(1)
    until(lambda: "sent 1" in adopted.lines() and stack.row(ignored.id).state == "succeeded")
    late = shop.send.apply_async((2, 60), soft_time_limit=0.5)
    until(lambda: (row := stack.row(late.id)) and row.state == "dead" and "SoftTimeLimitExceeded" in row.error)
    # It lists what waits in the ledger, as Celery's worker does.
    waiting = shop.price.apply_async((7,), {"copies": 2}, countdown=3600)
    ours = [row.worker]  # others may share the broker
    inspect = shop.app.control.inspect(destination=ours, timeout=10)
    entry = until(lambda: (inspect.scheduled() or {}).get(row.worker), "the waiting task")[0]["request"]
    assert (entry["id"], entry["args"], entry["kwargs"]) == (waiting.id, [7], {"copies": 2})
    assert entry["delivery_info"]["routing_key"] == adopted.queue
    assert "shop" in inspect.conf()[row.worker]["include"]
    # Tasks are revoked by their stamps, and by a worker of Celery's that starts and has revoked them.
    shop.app.control.revoke_by_stamped_headers({"campaign": ["web"]}, ours, reply=True, timeout=10)
    stamped = shop.price.apply_async((1,), stamped_headers=["campaign"], campaign="web")
    inspect.hello("celery@other", revoked={"revoked-elsewhere": [0.0, 0, "revoked-elsewhere"]})
    for revoked in (stamped, shop.price.apply_async((1,), task_id="revoked-elsewhere")):
        until(lambda revoked=revoked: revoked.state == "REVOKED")
    assert "success shop.price" in adopted.lines()
    assert stack.letters("id_taken") == stack.letters("undecodable") == []


def test_a_web_process_sends_straight_to_our_queues(adopted: AdoptedShop) -> None:
    adopted.start_worker()
    adopt(adopted.shop.app, settings=adopted.stack.settings)
    adopt(adopted.shop.app, settings=adopted.stack.settings)  # as a reload would
    result = adopted.shop.price.delay(5, copies=3)
    assert result.get(timeout=WAIT_SECONDS) == 15  # without a dispatcher


def test_nothing_is_lost_when_its_worker_is_killed(adopted: AdoptedShop) -> None:
    adopted.run("dispatcher")
    worker = adopted.start_worker("--pool", "threads", "--concurrency", "4")
    adopt(adopted.shop.app, settings=adopted.stack.settings)
    for number in range(200):
        adopted.shop.send.delay(number)
    until(lambda: len(adopted.lines()) > 40)
    worker.kill()
    worker.wait(WAIT_SECONDS)
    adopted.start_worker("--pool", "threads", "--concurrency", "20")
    until(lambda: set(adopted.lines()) >= {f"sent {number}" for number in range(200)})
