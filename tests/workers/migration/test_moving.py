"""The steps of docs/from-celery.md and docs/from-dramatiq.md, with stock workers, clients and beat."""

from __future__ import annotations

import pytest
from moving import Shop, stop
from support.polling import WAIT_SECONDS
from support.stack import lines

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.mark.parametrize("engine", ["celery", "dramatiq"])
def test_a_queue_moves_while_the_rest_stays_with_the_old_workers(shop: Shop) -> None:
    # Before: one old worker for both queues.
    worker = shop.consume(shop.mails, shop.images)
    shop.call(f"receipt.{shop.send}('1'); resize.{shop.send}('a')")
    shop.ran("old receipt 1 1", "old resize a")

    # 1. It leaves the queue of mails, where jobs wait from now on.
    stop(worker)
    shop.consume(shop.images)
    waiting = shop.call(f"answer = receipt.{shop.send}('2', copies=2).{shop.id}; resize.{shop.send}('b')")
    shop.ran("old resize b")
    assert "old receipt 2 2" not in lines(shop.file)

    # 2. Penstock takes them over. Nothing that sends was changed.
    shop.take_over()
    shop.ran("new receipt 2 2")
    assert shop.stack.producer.handle(waiting).result(WAIT_SECONDS) == "2"
    ids = shop.call(
        f"answer = [receipt.{shop.send_later('later')}.{shop.id}, receipt.{shop.send}('flaky').{shop.id}]\n"
        f"receipt.{shop.send}('with a picture')"
    )
    shop.ran("new receipt later 1", "new receipt flaky 1")
    assert [shop.stack.producer.handle(job_id).wait(WAIT_SECONDS).state for job_id in ids] == ["succeeded", "succeeded"]
    assert shop.stack.row(ids[1]).attempt == 2

    # New handlers reach the queue that stayed.
    shop.ran("old resize from a handler")
    if shop.engine == "celery":
        moves_chains_and_beat(shop)
    assert [line for line in lines(shop.file) if line.startswith("old receipt")] == ["old receipt 1 1"]

    # Back again: the old worker runs the old code's messages.
    for process in shop.stack.processes:
        stop(process)
    shop.call(f"receipt.{shop.send}('back')")
    shop.consume(shop.mails)
    shop.ran("old receipt back 1")


def moves_chains_and_beat(shop: Shop) -> None:
    shop.call("from celery import chain\nchain(receipt.si('first'), receipt.si('second')).apply_async()")
    shop.ran("new receipt first 1", "new receipt second 1")
    # A chain of the old application reaches the new handlers.
    shop.call("from celery import chain\nchain(resize.si('c'), receipt.si('after c')).apply_async()")
    shop.ran("old resize c", "new receipt after c 1")

    # 3. Beat still sends, until its entries are schedules.
    shop.old("celery", "-A", "celery_shop", "beat", "--schedule", str(shop.folder / "beat"))
    shop.ran("new receipt beat 1")


@pytest.mark.rabbitmq
@pytest.mark.parametrize(("engine", "broker"), [("celery", "rabbitmq")], indirect=["broker"])
def test_a_producer_moves_before_the_workers(shop: Shop, celery_delays: None) -> None:
    """Over RabbitMQ a Celery worker runs what our producers send."""
    from penstock.schemas import Job, registry

    job = type(Job)("Resize", (Job,), {"__annotations__": {"image": str}}, kind="shop.resize", queue=shop.images)
    try:
        shop.stack.producer.enqueue(job(image="from a producer"))
    finally:
        registry.discard(job.kind())
    ours = f"{shop.stack.settings.prefix}.{shop.images}"
    shop.consume(SHOP_PENSTOCK_QUEUE=ours)
    shop.call("resize.delay('from the old code')")
    shop.ran("old resize from a producer", "old resize from the old code")
