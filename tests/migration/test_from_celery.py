"""The steps of docs/from-celery.md, with stock Celery workers, clients and beat."""

from __future__ import annotations

import subprocess
import uuid

import pytest
from moving import Shop, stop
from support.polling import WAIT_SECONDS
from support.stack import lines

ENGINE = "celery"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def consume(shop: Shop, *queues: str, **env: str) -> subprocess.Popen[bytes]:
    """Start a Celery worker under a name of its own: on RabbitMQ a second one of a name cannot start."""
    quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat", "--pool", "solo"]
    chosen = ["-Q", ",".join(queues)] if queues else []
    name = f"{uuid.uuid4().hex}@%h"
    return shop.old("celery", "-A", "celery_shop", "worker", "-n", name, *quiet, *chosen, **env)


def test_a_queue_moves_while_the_rest_stays_with_celery(shop: Shop) -> None:
    # Before: one Celery worker for both queues.
    send = "from celery_shop import receipt, resize, app\n"
    worker = consume(shop, shop.mails, shop.images)
    shop.call(send + "receipt.delay('1'); resize.delay('a')")
    shop.ran("old receipt 1 1", "old resize a")

    # 1. It leaves the queue of mails, where jobs wait from now on.
    stop(worker)
    consume(shop, shop.images)
    waiting = shop.call(send + "answer = receipt.delay('2', copies=2).id; resize.delay('b')")
    shop.ran("old resize b")
    assert "old receipt 2 2" not in lines(shop.file)

    # 2. Penstock takes them over. Nothing that sends was changed.
    shop.take_over("celery_shop_moved")
    shop.ran("new receipt 2 2")
    assert shop.stack.producer.handle(waiting).result(WAIT_SECONDS) == "2"
    ids = shop.call(
        send
        + "from celery import chain\n"
        + "answer = [receipt.apply_async(('later',), countdown=1).id, receipt.delay('flaky').id]\n"
        + "receipt.delay('with a picture')\n"
        + "chain(receipt.si('first'), receipt.si('second')).apply_async()"
    )
    shop.ran("new receipt later 1", "new receipt flaky 1", "new receipt first 1", "new receipt second 1")
    assert [shop.stack.producer.handle(job_id).wait(WAIT_SECONDS).state for job_id in ids] == ["succeeded", "succeeded"]
    assert shop.stack.row(ids[1]).attempt == 2

    # What runs here reaches what stayed there, and a chain there reaches what runs here.
    shop.ran("old resize from a handler")
    shop.call(send + "from celery import chain\nchain(resize.si('c'), receipt.si('after c')).apply_async()")
    shop.ran("old resize c", "new receipt after c 1")

    # 3. Beat still sends, until its entries are schedules.
    shop.old("celery", "-A", "celery_shop", "beat", "--schedule", str(shop.folder / "beat"))
    shop.ran("new receipt beat 1")
    assert [line for line in lines(shop.file) if line.startswith("old receipt")] == ["old receipt 1 1"]

    # Back again: the old worker runs what the old code sends.
    for process in shop.stack.processes:
        stop(process)
    shop.call(send + "receipt.delay('back')")
    consume(shop, shop.mails)
    shop.ran("old receipt back 1")


@pytest.mark.rabbitmq
@pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True)
def test_a_producer_moves_before_the_workers(shop: Shop, celery_delays: None) -> None:
    """Over RabbitMQ a Celery worker runs what our producers send."""
    from penstock.schemas import Job, registry

    job = type(Job)("Resize", (Job,), {"__annotations__": {"image": str}}, kind="shop.resize", queue=shop.images)
    try:
        shop.stack.producer.enqueue(job(image="from a producer"))
    finally:
        registry.discard(job.kind())
    ours = f"{shop.stack.settings.prefix}.{shop.images}"
    consume(shop, SHOP_PENSTOCK_QUEUE=ours)
    shop.call("from celery_shop import resize\nresize.delay('from the old code')")
    shop.ran("old resize from a producer", "old resize from the old code")
