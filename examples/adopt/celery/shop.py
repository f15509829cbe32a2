"""A Celery application as there are many: nothing in it knows of Penstock.

It runs under Celery's own worker, `celery -A shop worker`, and under Penstock's, `penstock worker --celery shop:app`.
"""

from __future__ import annotations

import os
import time
from typing import Any

from celery import Celery, Task, chain, chord

app = Celery("shop", broker=os.environ["SHOP_BROKER"], backend=os.environ["SHOP_BACKEND"])
app.conf.task_default_queue = os.environ.get("SHOP_QUEUE", "celery")
app.conf.result_extended = True
app.conf.beat_schedule = {"remind": {"task": "shop.send", "schedule": 2.0, "args": (1000, 0)}}


class Counted(Task):
    """A task class of its own, with a hook."""

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        _write(f"success {self.name}")


@app.task(name="shop.price", base=Counted)
def price(cents: int, copies: int = 1) -> int:
    return cents * copies


@app.task(name="shop.total")
def total(prices: list[int]) -> int:
    return sum(prices)


@app.task(name="shop.invoice", bind=True)
def invoice(self: Task, orders: list[list[int]]) -> Any:
    """Becomes a chord: its total is the result of this task."""
    return self.replace(chord((price.s(*order) for order in orders), total.s()))


@app.task(name="shop.discount", bind=True)
def discount(self: Task, cents: int) -> Any:
    return self.replace(chain(price.s(cents, 2), price.s(1)))


@app.task(name="shop.charge", bind=True, max_retries=5)
def charge(self: Task, failures: int) -> int:
    """Fails a few times before it works."""
    if self.request.retries < failures:
        raise self.retry(exc=ConnectionError("the bank does not answer"), countdown=0.1)
    return int(self.request.retries)


@app.task(name="shop.refuse")
def refuse() -> None:
    raise ValueError("no such order")


@app.task(name="shop.apologise")
def apologise(task_id: str) -> None:
    _write(f"apology for {task_id}")


@app.task(name="shop.send", ignore_result=True, time_limit=3600)
def send(order: int, seconds: float = 0.05) -> None:
    time.sleep(seconds)
    _write(f"sent {order}")


def _write(line: str) -> None:
    with open(os.environ["SHOP_FILE"], "a") as file:
        file.write(f"{line}\n")
