"""The steps of docs/from-dramatiq.md, with stock Dramatiq workers and clients."""

from __future__ import annotations

import pytest
from moving import Shop, stop
from support.polling import WAIT_SECONDS
from support.stack import lines

ENGINE = "dramatiq"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SMALL = ("--processes", "1", "--threads", "2")


def test_a_queue_moves_while_the_rest_stays_with_dramatiq(shop: Shop) -> None:
    # Before: one Dramatiq worker for both queues.
    send = "from dramatiq_shop import receipt, resize\n"
    worker = shop.old("dramatiq", "dramatiq_shop", *SMALL, "--queues", shop.mails, shop.images)
    shop.call(send + "receipt.send('1'); resize.send('a')")
    shop.ran("old receipt 1 1", "old resize a")

    # 1. It leaves the queue of mails, where jobs wait from now on.
    stop(worker)
    shop.old("dramatiq", "dramatiq_shop", *SMALL, "--queues", shop.images)
    waiting = shop.call(send + "answer = receipt.send('2', copies=2).message_id; resize.send('b')")
    shop.ran("old resize b")
    assert "old receipt 2 2" not in lines(shop.file)

    # 2. Penstock takes them over. Nothing that sends was changed.
    shop.take_over("dramatiq_shop_moved")
    shop.ran("new receipt 2 2")
    assert shop.stack.producer.handle(waiting).result(WAIT_SECONDS) == "2"
    ids = shop.call(
        send
        + "answer = [receipt.send_with_options(args=('later',), delay=1000).message_id]\n"
        + "answer += [receipt.send('flaky').message_id]\n"
        + "receipt.send('with a picture')"
    )
    shop.ran("new receipt later 1", "new receipt flaky 1")
    assert [shop.stack.producer.handle(job_id).wait(WAIT_SECONDS).state for job_id in ids] == ["succeeded", "succeeded"]
    assert shop.stack.row(ids[1]).attempt == 2

    # What runs here reaches what stayed there.
    shop.ran("old resize from a handler")
    assert [line for line in lines(shop.file) if line.startswith("old receipt")] == ["old receipt 1 1"]

    # Back again: the old worker runs what the old code sends.
    for process in shop.stack.processes:
        stop(process)
    shop.call(send + "receipt.send('back')")
    shop.old("dramatiq", "dramatiq_shop", *SMALL, "--queues", shop.mails)
    shop.ran("old receipt back 1")
