"""The queue of mails after the move: one job and one handler for its task. The rest of the application stays."""

from __future__ import annotations

import celery_shop

from penstock.schemas import Job, RetryPolicy
from penstock.workers import Context, handles


class Receipt(Job, kind="shop.receipt", queue=celery_shop.MAILS, retry=RetryPolicy(max_attempts=3, first_delay=0.1)):
    order: str
    copies: int = 1


@handles(Receipt)
def receipt(job: Receipt, ctx: Context) -> str:
    if job.order == "flaky" and ctx.attempt == 1:
        raise ConnectionError("once")
    celery_shop.note(f"new receipt {job.order} {job.copies}")
    if job.order == "with a picture":
        # Not `resize.delay()`: a shared task belongs to the current app, which here is the worker's own.
        celery_shop.app.send_task("shop.resize", ["from a handler"])
    return job.order


class Resize(Job, kind="shop.resize", queue=celery_shop.IMAGES):
    """Sent by Penstock's producers while Celery's worker still runs it."""

    image: str
