"""An application on RQ as it may be found: functions, callbacks, and a queue that its web backend sends to."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from redis import Redis
from rq import Callback, Queue, Retry, get_current_job
from rq.job import Job

connection = Redis.from_url(os.environ.get("RQ_REDIS_URL", "redis://127.0.0.1:6379/0"))
high, default = Queue("high", connection=connection), Queue("default", connection=connection)
JOURNAL = Path(os.environ.get("SHOP_JOURNAL", "journal.txt"))


def note(line: str) -> None:
    """Add a line to the journal, in one write: several processes share it."""
    with JOURNAL.open("ab", buffering=0) as file:
        file.write(f"{line}\n".encode())


def receipt(order: str, copies: int = 1) -> str:
    """Write a receipt."""
    note(f"receipt {order} {copies}")
    return f"receipt of {order}"


def resize(image: str, seconds: float = 0.05) -> dict[str, Any]:
    """Resize an image, which takes its time."""
    time.sleep(seconds)
    note(f"resize {image}")
    return {"image": image, "width": 100}


def charge(order: str) -> int:
    """Charge a card at a bank that answers at the third call."""
    job = get_current_job()
    assert job is not None
    calls = job.meta["calls"] = job.meta.get("calls", 0) + 1
    job.save_meta()
    note(f"charge {order} {calls}")
    if calls < 3:
        raise ConnectionError("the bank does not answer")
    return calls


def stock(order: str) -> Any:
    """Look for goods, and ask RQ to look again until they are there."""
    job = get_current_job()
    assert job is not None
    looks = job.meta["looks"] = job.meta.get("looks", 0) + 1
    job.save_meta()
    return "in stock" if looks > 1 else Retry(max=3, interval=1)


def refuse(order: str) -> None:
    """Fail for good."""
    raise ValueError(f"order {order} is not valid")


async def mail(order: str) -> str:
    """Mail a receipt; RQ runs coroutines, too."""
    note(f"mail {order}")
    return f"mailed {order}"


def paid(job: Job, connection: Redis, result: Any, *_: Any) -> None:
    """Callback of a success."""
    note(f"paid {result}")


def alarm(job: Job, connection: Redis, error: type[BaseException], value: BaseException, trace: Any) -> None:
    """Callback of a failure."""
    note(f"alarm {error.__name__}: {value}")


def order(number: str) -> dict[str, str]:
    """Enqueue all jobs of an order, as the web backend does. Returns RQ's ids of the jobs by their names."""
    charged = high.enqueue(charge, number, retry=Retry(max=3, interval=[0, 1]), on_success=Callback(paid))
    jobs = {
        "charge": charged,
        "receipt": default.enqueue(receipt, number, copies=2, depends_on=charged),
        "resize": default.enqueue(resize, f"{number}.png", description="a picture of the goods"),
        "stock": default.enqueue(stock, number),
        "refuse": high.enqueue(refuse, number, on_failure=Callback(alarm)),
        "mail": default.enqueue_in(timedelta(seconds=1), mail, number),
    }
    return {name: job.id for name, job in jobs.items()}
