"""Jobs that act on cues, and threads that wait for them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import date
from typing import Any

import redis
from pydantic import BaseModel, ConfigDict
from support.polling import WAIT_SECONDS, until_async

from penstock.schemas import Job, RetryPolicy
from penstock.workers import Context
from penstock.workers import handles as runs

NEVER = 3600.0


class Play(Job, kind="watch.play", queue="watched", retry=RetryPolicy(max_attempts=1)):
    """Does what `say` says to it."""

    name: str = ""


class Blind(Job, kind="watch.blind", queue="watched", track=False): ...


cues: dict[str, list[Any]] = {}


class Sent(BaseModel):
    model_config = ConfigDict(strict=True)

    day: date
    parts: tuple[int, ...]


@runs(Play)
async def play(job: Play, ctx: Context) -> Any:
    while job.name:
        await until_async(lambda: cues.get(job.name))
        match cues[job.name].pop(0):
            case int(done):
                ctx.progress(done, 9)
            case "fail":
                raise ValueError("boom")
            case "end":
                break
    return Sent(day=date(2026, 2, 1), parts=(1, 2))


@runs(Blind)
async def blind(job: Blind) -> None: ...


class Background:
    """Something in a thread, and what came of it."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work, self._value, self._error = work, None, None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._value = self._work()
        except BaseException as error:
            self._error = error

    def done(self) -> bool:
        return not self._thread.is_alive()

    def get(self) -> Any:
        self._thread.join(WAIT_SECONDS)
        assert self.done(), "it hangs"
        if self._error is not None:
            raise self._error
        return self._value


def watchers(client: redis.Redis, prefix: str, job_id: str) -> int:
    """How many connections have subscribed to a job, once it is entered as watched; else 0."""
    [(_, count)] = client.pubsub_numsub(f"{prefix}:job:{job_id}")
    return int(count) if client.zscore(f"{prefix}:watched", job_id) is not None else 0
