"""A Celery application that runs unchanged under a worker of ours."""

from __future__ import annotations

from typing import Any

import celery
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
        logs = "".join(log.read_text() for log in stack.folder.glob("worker-*.log"))
        assert "time_limit of shop.send" in logs  # longer than RabbitMQ's patience
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
    killed = shop.send.apply_async((3, 60), time_limit=0.5)
    until(lambda: (row := stack.row(killed.id)) and row.state == "dead" and "timeout of 0:00:00.5" in row.error)
    assert "success shop.price" in adopted.lines()
    assert stack.letters("id_taken") == stack.letters("undecodable") == []


SLOW = """
import os
import celery

app = celery.Celery("slow", broker=os.environ["SHOP_BROKER"])
app.conf.task_default_queue = os.environ["SHOP_QUEUE"]

@app.task(name="slow.note", rate_limit="1/h", ignore_result=True)
def note(number):
    with open(os.environ["SHOP_FILE"], "a") as file:
        file.write(f"note {number}\\n")
"""


@pytest.mark.parametrize("broker", ["redis"], indirect=True)
def test_a_rate_limit_holds_for_all_workers_and_remote_control_changes_it(adopted: AdoptedShop, prefix: str) -> None:
    stack, name = adopted.stack, f"slow@{prefix}"
    (stack.folder / "slow_shop.py").write_text(SLOW)
    application = ("--celery", "slow_shop:app")
    stack.run(["dispatcher", *application], PYTHONPATH=str(stack.folder))
    for each in (name, f"other@{prefix}"):
        stack.run(["worker", *application, "--name", each, "--pool", "threads"], PYTHONPATH=str(stack.folder))
    with celery.Celery("sender", broker=stack.broker_url, set_as_current=False, fixups=set()) as app:
        sent = [app.send_task("slow.note", [number], queue=adopted.queue).id for number in range(3)]
        until(lambda: len(adopted.lines()) == 1)
        until(lambda: sorted(row and row.state for row in map(stack.row, sent)) == ["scheduled"] * 2 + ["succeeded"])
        options: dict[str, Any] = {"destination": [name], "reply": True, "timeout": WAIT_SECONDS}
        [refused] = app.control.rate_limit("slow.note", "fast", **options)
        assert refused == {name: {"error": "'fast' is not a rate; write 10/s, 100/m or 5/h"}}
        [changed] = app.control.rate_limit("slow.note", "100/s", **options)
        assert changed == {name: {"ok": "new rate limit of slow.note, for all workers: 100/s"}}
    until(lambda: set(adopted.lines()) == {f"note {number}" for number in range(3)})


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
