"""Fakes of what producers hold: sender, ledger connections and envelope builder of a test."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, NoReturn

from penstock.config.errors import WaitTimeout
from penstock.producers.enqueue.envelopes import EnvelopeBuilder
from penstock.producers.enqueue.override import Override
from penstock.producers.handles.connections import LedgerConnections
from penstock.producers.storage import Storage
from penstock.producers.testing.caught import CaughtJobs
from penstock.producers.testing.clock import Clock
from penstock.producers.testing.matching import TOLERANCE
from penstock.producers.testing.runner import HandlerRunner
from penstock.schemas.jobs.kind import PRIORITIES
from penstock.schemas.wire.codec import Envelope

if TYPE_CHECKING:
    from penstock.ledger.sql.database import Database


def fake_connections(jobs: CaughtJobs, runner: HandlerRunner, clock: Clock) -> Override:
    """Override under which every producer sends to `jobs`, whose handlers `runner` runs if it is inline."""

    def adjust(builder: EnvelopeBuilder) -> EnvelopeBuilder:
        return TravellingBuilder(builder.max_bytes, builder.queues, clock)

    return Override(FakeSender(jobs, runner), AsyncFakeSender(jobs, runner), FakeLedgerConnections(jobs), adjust)


@dataclass(frozen=True)
class TravellingBuilder(EnvelopeBuilder):
    """`EnvelopeBuilder` for absolute times that are meant on the test's clock."""

    clock: Clock = field(default_factory=Clock)

    def _due_at(self, now: datetime, delay: timedelta | None, run_at: datetime | None) -> datetime | None:
        return super()._due_at(now, delay, run_at and run_at - self.clock.ahead)


class FakeSender:
    """`Sender` that keeps everything for the test."""

    def __init__(self, jobs: CaughtJobs, runner: HandlerRunner) -> None:
        self._jobs, self._runner = jobs, runner

    def send(self, envelopes: Sequence[Envelope]) -> None:
        self._jobs.catch(envelopes)
        self._runner.run_inline()

    def ping(self) -> None: ...

    def depths(self, queues: Sequence[str]) -> dict[str, int]:
        due = [job.queue for job in self._jobs.waiting() if abs(job.delay) <= TOLERANCE]
        return {queue: due.count(queue) for queue in queues}

    def lane_depths(self, queues: Sequence[str]) -> dict[str, dict[str, int]]:
        due = [(job.queue, job.priority) for job in self._jobs.waiting() if abs(job.delay) <= TOLERANCE]
        return {queue: {priority: due.count((queue, priority)) for priority in PRIORITIES} for queue in queues}

    def close(self) -> None: ...


class AsyncFakeSender:
    """`AsyncSender` that keeps everything for the test."""

    def __init__(self, jobs: CaughtJobs, runner: HandlerRunner) -> None:
        self._jobs, self._runner = jobs, runner

    async def send(self, envelopes: Sequence[Envelope]) -> None:
        self._jobs.catch(envelopes)
        if self._runner.inline:
            await asyncio.to_thread(self._runner.run_inline)

    async def ping(self) -> None: ...

    async def close(self) -> None: ...


class FakeLedgerConnections(LedgerConnections):
    """Connections to the test's ledger. An app that closes its producer leaves it open for the test."""

    def __init__(self, jobs: CaughtJobs) -> None:
        super().__init__()
        self._jobs = jobs

    def open(self, waiter: object = None) -> Database:
        return self._jobs.database

    def open_storage(self) -> Storage:
        return self._jobs.open_storage()

    def subscriptions(self) -> Any:
        return NoSubscriptions()

    def async_subscriptions(self) -> Any:
        return NoSubscriptions()

    def close(self) -> None: ...

    async def close_async(self) -> None: ...


class NoSubscriptions:
    """Subscriptions of a test, where no worker runs: a wait would never end."""

    def subscribe(self, job_id: str) -> NoReturn:
        raise WaitTimeout(f"job {job_id} has not run: in a test it does when drain() is called; or set inline")
