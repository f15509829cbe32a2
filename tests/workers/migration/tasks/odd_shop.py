"""A Celery application with tasks that are hard to write as typed jobs."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from decimal import Decimal
from enum import Enum
from typing import TYPE_CHECKING, Any

import celery

if TYPE_CHECKING:
    from nowhere import Ghost

app = celery.Celery("odd", broker="redis://127.0.0.1:6379/0", set_as_current=False, fixups=set())
app.conf.task_routes = {"odd.mail.*": {"queue": "mails"}}


class Color(Enum):
    RED = "red"


class Refused(Exception): ...


@app.task(
    name="odd.mail.send",
    autoretry_for=(Refused, ConnectionError),
    dont_autoretry_for=(BrokenPipeError,),
    max_retries=4,
    retry_backoff=2,
    time_limit=30,
    soft_time_limit=20,
    expires=60,
    shared=False,
)
def send(to: str, color: Color = Color.RED, *, copy: bool = False, cost: Decimal = Decimal("1.5")) -> str:
    """Send a "mail"."""
    return f"{to} {color.value} {copy} {cost}"


@app.task(name="odd.other.send", ignore_result=True, autoretry_for=(Exception,), max_retries=None, shared=False)
def send_other(a, /, b=1, *args, note="a'b\"", **kwargs):  # type: ignore[no-untyped-def]
    print(a, b, args, note, kwargs)


@app.task(name="odd.class", bind=True, max_retries=2, default_retry_delay=7, shared=False)
def retried(
    self: Any,
    call: Callable[[int], int],
    ghost: Ghost,
    date: datetime.date | None = None,
    count: int = None,  # type: ignore[assignment]  # noqa: RUF013
    list: list[int] = [],  # noqa: B006
    wrong: int = "seven",  # type: ignore[assignment]
) -> dict[str, Any]:
    raise self.retry(countdown=1)


@app.task(name="2nd:print", shared=False)
def print_it() -> None: ...


@app.task(name="no kind has this name", shared=False)
def unnamed() -> None: ...
