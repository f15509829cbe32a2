"""The queue of mails after the move: one job and one handler for its actor. The rest of the application stays."""

from __future__ import annotations

import dramatiq_shop

from penstock.schemas import Job, RetryPolicy
from penstock.workers import Context, handles


class Receipt(Job, kind="shop.receipt", queue=dramatiq_shop.MAILS, retry=RetryPolicy(max_attempts=4, first_delay=0.1)):
    order: str
    copies: int = 1


@handles(Receipt)
def receipt(job: Receipt, ctx: Context) -> str:
    if job.order == "flaky" and ctx.attempt == 1:
        raise ConnectionError("once")
    dramatiq_shop.note(f"new receipt {job.order} {job.copies}")
    if job.order == "with a picture":
        dramatiq_shop.resize.send("from a handler")
    return job.order
